/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * dma_engine.h: the interface of the driver of dma-engine (1234:11e9). An open file of /dev/dma-engine-ADDRESS can bind
 * the address space of the calling process to the engine, and then copies within it.
 */
#ifndef DMA_ENGINE_H
#define DMA_ENGINE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The most jobs of one file that have not been waited for. */
#define DMA_ENGINE_JOBS 16

/* Binds the calling process, and answers the PASID. EBUSY: the file is bound already. */
#define DMA_ENGINE_BIND _IOR('N', 0, __u32)

/*
 * Starts a copy, and answers its job. Waits for a slot of the engine if all are in use. EPERM: the caller is not the
 * process that is bound. EBUSY: the file has DMA_ENGINE_JOBS jobs. EINVAL: the file is not bound, or a flag is unknown.
 */
#define DMA_ENGINE_SUBMIT _IOWR('N', 1, struct dma_engine_copy)

/*
 * Waits for the end of a job, answers how it ended, and forgets it. EFAULT: the process may not access the address
 * `fault` in this way. EINVAL: there is no such job, or its length is over 1 GiB. ECANCELED: the driver ended the job.
 * EIO: the engine failed. A signal ends the wait, but not the job.
 */
#define DMA_ENGINE_WAIT _IOWR('N', 2, struct dma_engine_wait)

/* Requests neither translations nor pages: the IOMMU translates each access, and refuses one to an absent page. */
#define DMA_ENGINE_UNTRANSLATED (1u << 0)

struct dma_engine_copy {
	__u64 source;
	__u64 destination;
	__u64 length;
	__u32 flags;
	__u32 job; /* answered */
};

struct dma_engine_wait {
	__u32 job;
	__u32 result; /* answered: the result of the engine, see Devices.docc/DMAEngine.md */
	__u64 done;   /* answered: bytes copied */
	__u64 fault;  /* answered: the address of the access that ended the copy, or 0 */
};

#endif
