// SPDX-License-Identifier: GPL-2.0
/*
 * dma_engine: the driver of Nestling's dma-engine (1234:11e9) for shared virtual memory. A process hands its own
 * pointers to the engine. The engine uses the tables of the process by its PASID, and requests the pages that are
 * missing. dma_engine.h documents the interface, Devices.docc/DMAEngine.md the registers.
 *
 * A job has a slot of the engine until its interrupt. Its outcome stays with the file until the process fetches it: a
 * process that does not fetch it keeps no slot from the others.
 *
 * Locks: engine->lock orders bind, release and remove. engine->slot_lock, taken inside it and in interrupts, protects
 * the slots and the jobs.
 */
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/interrupt.h>
#include <linux/iommu.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/pci.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "dma_engine.h"

#define ENGINE_ID		0x00
#define ENGINE_VERSION		0x04
#define ENGINE_SLOTS		0x80
#define SLOT(n)			(0x400 + 0x40 * (n))
#define SLOT_COMMAND		0x00
#define   COMMAND_COPY		(3 | BIT(4) | BIT(11) | BIT(15))	/* with PASID, interrupt and record */
#define   COMMAND_ATS		BIT(8)
#define   COMMAND_PRI		BIT(10)
#define SLOT_STATUS		0x04
#define   STATUS_BUSY		BIT(0)
#define   STATUS_END		BIT(1)
#define SLOT_SOURCE		0x08
#define SLOT_DESTINATION	0x10
#define SLOT_COUNT		0x18
#define SLOT_PASID_VECTOR	0x20
#define SLOT_COMPLETION		0x28
#define MAX_SLOTS		16
#define RESULT_ENDED		12
/* The errno of each of the engine's results. */
static const int errnos[] = { -EIO, 0, -EIO, -EINVAL, -EIO, -EFAULT, -EFAULT, -EFAULT, -EFAULT, -EFAULT, -EFAULT, -EIO,
			      -ECANCELED, -EFAULT };

struct engine_record {
	__le32 result, slot;
	__le64 done, fault, reserved;
};

struct engine_job {
	struct engine_file *file;
	enum { JOB_FREE, JOB_RUNS, JOB_ENDED } state;
	struct dma_engine_wait outcome;
};

struct engine_slot {
	struct engine *engine;
	void __iomem *regs;
	struct engine_record *record;
	dma_addr_t record_address;
	struct engine_job *job;		/* NULL: the slot is free */
};

struct engine {
	refcount_t users;
	struct pci_dev *pdev;
	struct miscdevice misc;
	char name[48];
	struct mutex lock;
	struct list_head files;		/* those that are bound */
	bool removed;			/* no job may start */
	spinlock_t slot_lock;
	wait_queue_head_t wait;		/* a job has ended, or the engine is removed */
	int slot_count;
	struct engine_slot slots[MAX_SLOTS];
};

struct engine_file {
	struct engine *engine;
	struct list_head list;
	struct iommu_sva *sva;
	struct mm_struct *mm;		/* what is bound; NULL: no job may start */
	u32 pasid;
	int running;			/* the jobs that have a slot */
	struct engine_job jobs[DMA_ENGINE_JOBS];
};

#define for_each_slot(slot, engine) for (slot = (engine)->slots; slot < (engine)->slots + (engine)->slot_count; slot++)
#define for_each_slot_of(slot, file) for_each_slot(slot, (file)->engine) if (slot->job && slot->job->file == (file))

static void engine_put(void *data)
{
	struct engine *engine = data;

	if (refcount_dec_and_test(&engine->users))
		kfree(engine);
}

/* Ends a slot's job. Called with slot_lock held. */
static void slot_finish(struct engine_slot *slot, u32 result)
{
	struct engine_job *job = slot->job;

	job->outcome.result = result;
	job->outcome.done = le64_to_cpu(slot->record->done);
	job->outcome.fault = le64_to_cpu(slot->record->fault);
	job->state = JOB_ENDED;
	slot->job = NULL;
	/* With the last job's end, engine_unbind() may go on, and the file may be freed. */
	smp_store_release(&job->file->running, job->file->running - 1);
	wake_up_all(&slot->engine->wait);
}

/* Each slot has its own vector. When the engine sends the interrupt, the record is written and the slot is idle. */
static irqreturn_t slot_interrupt(int irq, void *data)
{
	struct engine_slot *slot = data;
	u32 result, status;

	guard(spinlock)(&slot->engine->slot_lock);
	if (!slot->job)
		return IRQ_NONE;
	result = le32_to_cpu(READ_ONCE(slot->record->result));
	dma_rmb();
	if (!result) {
		/* Either the record did not reach memory, or this interrupt is of a job that the driver gave up. */
		status = readl(slot->regs + SLOT_STATUS);
		if (status & STATUS_BUSY)
			return IRQ_NONE;
		result = status >> 8 & 0xff;
	}
	slot_finish(slot, result);
	return IRQ_HANDLED;
}

/* Starts a copy in a free slot. Returns -EAGAIN if there is none. */
static int engine_start(struct engine_file *file, struct dma_engine_copy *copy)
{
	struct engine *engine = file->engine;
	struct engine_slot *slot;
	u32 command = COMMAND_COPY;
	int job = 0;

	guard(spinlock_irqsave)(&engine->slot_lock);
	if (engine->removed)
		return -ENODEV;
	if (file->mm != current->mm)
		return file->mm ? -EPERM : -EINVAL;
	while (job < DMA_ENGINE_JOBS && file->jobs[job].state != JOB_FREE)
		job++;
	if (job == DMA_ENGINE_JOBS)
		return -EBUSY;
	for_each_slot(slot, engine)
		if (!slot->job)
			break;
	if (slot == engine->slots + engine->slot_count)
		return -EAGAIN;

	/* The IOMMU driver has enabled what it supports. Without page requests, the pages must be present. */
	if (!(copy->flags & DMA_ENGINE_UNTRANSLATED) && engine->pdev->ats_enabled)
		command |= COMMAND_ATS | (engine->pdev->pri_enabled ? COMMAND_PRI : 0);
	file->running++;
	file->jobs[job].file = file;
	file->jobs[job].state = JOB_RUNS;
	copy->job = job;
	slot->job = &file->jobs[job];
	memset(slot->record, 0, sizeof(*slot->record));
	writeq(copy->source, slot->regs + SLOT_SOURCE);
	writeq(copy->destination, slot->regs + SLOT_DESTINATION);
	writeq(copy->length, slot->regs + SLOT_COUNT);
	writeq(file->pasid | (u64)(slot - engine->slots) << 32, slot->regs + SLOT_PASID_VECTOR);
	writeq(slot->record_address, slot->regs + SLOT_COMPLETION);
	writel(command, slot->regs + SLOT_COMMAND);
	return 0;
}

static long engine_submit(struct engine_file *file, struct dma_engine_copy __user *user)
{
	struct dma_engine_copy copy;
	int started, interrupted;

	if (copy_from_user(&copy, user, sizeof(copy)))
		return -EFAULT;
	if (copy.flags & ~DMA_ENGINE_UNTRANSLATED)
		return -EINVAL;
	interrupted = wait_event_interruptible(file->engine->wait, (started = engine_start(file, &copy)) != -EAGAIN);
	/* If this write fails, the process does not learn the job's number. The job ends with the file. */
	return interrupted ?: started ?: put_user(copy.job, &user->job);
}

static long engine_wait(struct engine_file *file, struct dma_engine_wait __user *user)
{
	struct engine *engine = file->engine;
	struct dma_engine_wait outcome;
	struct engine_job *job;
	u32 number;
	int ret;

	if (get_user(number, &user->job))
		return -EFAULT;
	if (number >= DMA_ENGINE_JOBS)
		return -EINVAL;
	job = &file->jobs[array_index_nospec(number, DMA_ENGINE_JOBS)];
	ret = wait_event_interruptible(engine->wait, READ_ONCE(job->state) != JOB_RUNS);
	if (ret)
		return ret;
	scoped_guard(spinlock_irqsave, &engine->slot_lock) {
		if (job->state != JOB_ENDED)
			return -EINVAL;
		outcome = job->outcome;
		outcome.job = number;
		job->state = JOB_FREE;
	}
	if (copy_to_user(user, &outcome, sizeof(outcome)))
		return -EFAULT;
	return outcome.result < ARRAY_SIZE(errnos) ? errnos[outcome.result] : -EIO;
}

static long engine_bind(struct engine_file *file, u32 __user *user)
{
	struct engine *engine = file->engine;
	struct iommu_sva *sva;

	guard(mutex)(&engine->lock);
	if (engine->removed || file->sva)
		return file->sva ? -EBUSY : -ENODEV;
	sva = iommu_sva_bind_device(&engine->pdev->dev, current->mm);
	if (IS_ERR(sva))
		return PTR_ERR(sva);
	file->sva = sva;
	file->pasid = iommu_sva_get_pasid(sva);
	mmget(current->mm);
	list_add(&file->list, &engine->files);
	scoped_guard(spinlock_irqsave, &engine->slot_lock)
		file->mm = current->mm;
	return put_user(file->pasid, user);
}

/*
 * Ends the file's jobs, which takes microseconds, and unbinds its process. After the interrupt of each job, the engine
 * makes no more requests with the PASID, as iommu_sva_unbind_device() expects. Called with engine->lock held.
 *
 * The file keeps the process's memory until then. If the memory went first, Linux 7.3 would not drain the page requests
 * that are queued (intel_mm_release() leaves the PASID entry as if unused), and would use the freed bond for them.
 */
static void engine_unbind(struct engine_file *file)
{
	struct engine *engine = file->engine;
	struct engine_slot *slot;
	struct mm_struct *mm;

	if (!file->sva)
		return;
	scoped_guard(spinlock_irqsave, &engine->slot_lock) {
		mm = file->mm;
		file->mm = NULL;
		for_each_slot_of(slot, file)
			writel(STATUS_END, slot->regs + SLOT_STATUS);
	}
	if (!wait_event_timeout(engine->wait, !smp_load_acquire(&file->running),
				pci_device_is_present(engine->pdev) ? HZ : 0)) {
		pci_warn(engine->pdev, "the engine does not end its jobs, and is not used any more\n");
		/* Without bus mastering the engine makes no more requests and sends no interrupts: end all jobs. */
		pci_clear_master(engine->pdev);
		guard(spinlock_irqsave)(&engine->slot_lock);
		engine->removed = true;
		for_each_slot(slot, engine) if (slot->job)
			slot_finish(slot, RESULT_ENDED);
	}
	iommu_sva_unbind_device(file->sva);
	mmput(mm);
	file->sva = NULL;
	list_del(&file->list);
}

static int engine_open(struct inode *inode, struct file *filp)
{
	struct engine *engine = container_of(filp->private_data, struct engine, misc);
	struct engine_file *file = kzalloc(sizeof(*file), GFP_KERNEL);

	if (!file)
		return -ENOMEM;
	refcount_inc(&engine->users);
	file->engine = engine;
	filp->private_data = file;
	return 0;
}

static int engine_release(struct inode *inode, struct file *filp)
{
	struct engine_file *file = filp->private_data;

	scoped_guard(mutex, &file->engine->lock)
		engine_unbind(file);
	engine_put(file->engine);
	kfree(file);
	return 0;
}

static long engine_ioctl(struct file *filp, unsigned int request, unsigned long argument)
{
	void __user *user = (void __user *)argument;

	switch (request) {
	case DMA_ENGINE_BIND: return engine_bind(filp->private_data, user);
	case DMA_ENGINE_SUBMIT: return engine_submit(filp->private_data, user);
	case DMA_ENGINE_WAIT: return engine_wait(filp->private_data, user);
	default: return -ENOTTY;
	}
}

static const struct file_operations engine_operations = {
	.owner = THIS_MODULE,
	.open = engine_open,
	.release = engine_release,
	.unlocked_ioctl = engine_ioctl,
};

static int engine_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct engine *engine = kzalloc(sizeof(*engine), GFP_KERNEL);
	struct engine_record *records;
	struct engine_slot *slot;
	dma_addr_t address;
	void __iomem *regs;
	int n, ret;

	if (!engine)
		return -ENOMEM;
	refcount_set(&engine->users, 1);
	mutex_init(&engine->lock);
	spin_lock_init(&engine->slot_lock);
	init_waitqueue_head(&engine->wait);
	INIT_LIST_HEAD(&engine->files);
	engine->pdev = pdev;
	pci_set_drvdata(pdev, engine);
	/* What is registered first is released last: the interrupts use the engine. */
	ret = devm_add_action_or_reset(&pdev->dev, engine_put, engine) ?: pcim_enable_device(pdev);
	if (ret)
		return ret;
	regs = pcim_iomap_region(pdev, 0, KBUILD_MODNAME);
	if (IS_ERR(regs))
		return PTR_ERR(regs);
	if (readl(regs + ENGINE_ID) != 0x414d444e || readl(regs + ENGINE_VERSION) < 2)
		return -ENODEV;
	ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	records = dmam_alloc_coherent(&pdev->dev, MAX_SLOTS * sizeof(*records), &address, GFP_KERNEL);
	if (ret || !records)
		return ret ?: -ENOMEM;
	pci_set_master(pdev);
	n = pci_alloc_irq_vectors(pdev, 1, MAX_SLOTS, PCI_IRQ_MSIX);
	if (n < 0)
		return n;
	engine->slot_count = min_t(u32, n, readl(regs + ENGINE_SLOTS) & 0xff); /* no slot without a vector */
	for (n = 0; n < engine->slot_count; n++) {
		slot = &engine->slots[n];
		*slot = (struct engine_slot){ .engine = engine, .regs = regs + SLOT(n), .record = records + n,
					      .record_address = address + n * sizeof(*records) };
		ret = devm_request_irq(&pdev->dev, pci_irq_vector(pdev, n), slot_interrupt, 0, KBUILD_MODNAME, slot);
		if (ret)
			return ret;
	}
	snprintf(engine->name, sizeof(engine->name), "dma-engine-%s", pci_name(pdev));
	engine->misc = (struct miscdevice){ .minor = MISC_DYNAMIC_MINOR, .name = engine->name,
					    .fops = &engine_operations, .parent = &pdev->dev };
	pci_info(pdev, "%d slots, ATS %d, page requests %d\n", n, pdev->ats_enabled, pdev->pri_enabled);
	return misc_register(&engine->misc);
}

static void engine_remove(struct pci_dev *pdev)
{
	struct engine *engine = pci_get_drvdata(pdev);
	struct engine_file *file, *next;

	misc_deregister(&engine->misc);
	guard(mutex)(&engine->lock);
	scoped_guard(spinlock_irqsave, &engine->slot_lock)
		engine->removed = true;
	list_for_each_entry_safe(file, next, &engine->files, list)
		engine_unbind(file);
	wake_up_all(&engine->wait);
}

static const struct pci_device_id engine_ids[] = { { PCI_DEVICE(0x1234, 0x11e9) }, { } };
MODULE_DEVICE_TABLE(pci, engine_ids);

static struct pci_driver engine_driver = {
	.name = KBUILD_MODNAME,
	.id_table = engine_ids,
	.probe = engine_probe,
	.remove = engine_remove,
};
module_pci_driver(engine_driver);
MODULE_DESCRIPTION("Shared virtual memory with Nestling's dma-engine");
MODULE_LICENSE("GPL");
