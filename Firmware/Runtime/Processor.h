/* Instructions that Swift cannot express: ports, model-specific registers, descriptor tables, volatile access. */
#pragma once
#include <stdint.h>

static inline uint8_t portRead8(uint16_t port) { uint8_t v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline uint16_t portRead16(uint16_t port) { uint16_t v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline uint32_t portRead32(uint16_t port) { uint32_t v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline void portWrite8(uint16_t port, uint8_t v) { __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }
static inline void portWrite16(uint16_t port, uint16_t v) { __asm__ volatile("outw %0, %1" ::"a"(v), "Nd"(port)); }
static inline void portWrite32(uint16_t port, uint32_t v) { __asm__ volatile("outl %0, %1" ::"a"(v), "Nd"(port)); }

/* Each access is a single instruction of one width, so that a hypervisor emulates exactly that access. */
static inline uint8_t load8(uint64_t at) { uint8_t v; __asm__ volatile("movb (%1), %0" : "=q"(v) : "r"(at) : "memory"); return v; }
static inline uint16_t load16(uint64_t at) { uint16_t v; __asm__ volatile("movw (%1), %0" : "=r"(v) : "r"(at) : "memory"); return v; }
static inline uint32_t load32(uint64_t at) { uint32_t v; __asm__ volatile("movl (%1), %0" : "=r"(v) : "r"(at) : "memory"); return v; }
static inline uint64_t load64(uint64_t at) { uint64_t v; __asm__ volatile("movq (%1), %0" : "=r"(v) : "r"(at) : "memory"); return v; }
static inline void store8(uint64_t at, uint8_t v) { __asm__ volatile("movb %0, (%1)" ::"q"(v), "r"(at) : "memory"); }
static inline void store16(uint64_t at, uint16_t v) { __asm__ volatile("movw %0, (%1)" ::"r"(v), "r"(at) : "memory"); }
static inline void store32(uint64_t at, uint32_t v) { __asm__ volatile("movl %0, (%1)" ::"r"(v), "r"(at) : "memory"); }
static inline void store64(uint64_t at, uint64_t v) { __asm__ volatile("movq %0, (%1)" ::"r"(v), "r"(at) : "memory"); }

static inline uint64_t readMSR(uint32_t number)
{
	uint32_t low, high;
	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
	return (uint64_t)high << 32 | low;
}
static inline void writeMSR(uint32_t number, uint64_t v)
{
	__asm__ volatile("wrmsr" ::"c"(number), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline uint64_t readTimestamp(void)
{
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (uint64_t)high << 32 | low;
}

struct CPUIDResult { uint32_t eax, ebx, ecx, edx; };
static inline struct CPUIDResult cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct CPUIDResult r;
	__asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
	return r;
}

static inline void enableInterrupts(void) { __asm__ volatile("sti" ::: "memory"); }
static inline void disableInterrupts(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void halt(void) { __asm__ volatile("hlt" ::: "memory"); }
/* Enables interrupts together with the halt, so that none is missed between a test and this. */
static inline void waitForInterrupt(void) { __asm__ volatile("sti; hlt; cli" ::: "memory"); }
static inline void pauseProcessor(void) { __asm__ volatile("pause" ::: "memory"); }
static inline void invalidatePage(uint64_t at) { __asm__ volatile("invlpg (%0)" ::"r"(at) : "memory"); }
static inline void loadEmptyInterruptTable(void)
{
	struct __attribute__((packed)) { uint16_t limit; uint64_t base; } p = {0, 0};
	__asm__ volatile("lidt %0" ::"m"(p) : "memory");
}
/* Causes an exception, which without an interrupt table ends in a shutdown. */
static inline void causeFault(void) { __asm__ volatile("ud2"); }
static inline void loadInterruptTable(uint64_t base)
{
	struct __attribute__((packed)) { uint16_t limit; uint64_t base; } p = {4095, base};
	__asm__ volatile("lidt %0" ::"m"(p) : "memory");
}

/* Addresses of symbols of boot.S and link.ld. */
extern uint8_t interruptStubs[], interruptDescriptors[], windowDirectory[], trampolineStart[], trampolineEnd[],
	processorsArrived[], imageEnd[];
static inline uint64_t addressOfInterruptStubs(void) { return (uint64_t)interruptStubs; }
static inline uint64_t addressOfInterruptDescriptors(void) { return (uint64_t)interruptDescriptors; }
static inline uint64_t addressOfWindowDirectory(void) { return (uint64_t)windowDirectory; }
static inline uint64_t addressOfTrampoline(void) { return (uint64_t)trampolineStart; }
static inline uint64_t sizeOfTrampoline(void) { return (uint64_t)(trampolineEnd - trampolineStart); }
static inline uint64_t addressOfProcessorsArrived(void) { return (uint64_t)processorsArrived; }
static inline uint64_t addressOfImageEnd(void) { return (uint64_t)imageEnd; }
