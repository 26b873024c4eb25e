/* Boots from a Multiboot 1 loader to Swift: header, page tables, long mode, interrupt stubs, and the trampoline that boots
 * an application processor. Multiboot 0.6.96, 3.1 and 3.2.
 */
        .set    MULTIBOOT_MAGIC, 0x1BADB002
        .set    MULTIBOOT_FLAGS, 0x00000003             # modules on pages; memory map wanted
        .set    PRESENT_WRITABLE, 0x3
        .set    LARGE_PAGE, 0x83                        # present, writable, 2 MiB
        .set    CODE_SELECTOR, 0x08
        .set    DATA_SELECTOR, 0x10
        .set    CODE32_SELECTOR, 0x18
        .set    STACK_SIZE, 0x4000
        .set    MAXIMUM_PROCESSORS, 64

        .section .multiboot, "a"
        .balign 4
        .long   MULTIBOOT_MAGIC
        .long   MULTIBOOT_FLAGS
        .long   -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

        .section .text.boot, "ax"
        .code32
        .globl  bootEntry
bootEntry:
        cli
        cld
        movl    $stacks + STACK_SIZE, %esp
        movl    %eax, %edi                              # the loader's magic number
        movl    %ebx, %esi                              # and its information structure

        # Identity tables for the first 4 GiB, in 2 MiB pages.
        movl    $pageDirectories, %ebx
        movl    $LARGE_PAGE, %eax
        movl    $2048, %ecx
1:      movl    %eax, (%ebx)
        movl    $0, 4(%ebx)
        addl    $0x200000, %eax
        addl    $8, %ebx
        loop    1b
        movl    $pageDirectories + PRESENT_WRITABLE, %eax
        movl    $pageDirectoryPointers, %ebx
        movl    $4, %ecx
2:      movl    %eax, (%ebx)
        addl    $0x1000, %eax
        addl    $8, %ebx
        loop    2b
        # The window: one 2 MiB page at 512 GiB that Swift points at memory above 4 GiB.
        movl    $windowDirectory + PRESENT_WRITABLE, windowDirectoryPointers
        movl    $pageDirectoryPointers + PRESENT_WRITABLE, pageMapLevel4
        movl    $windowDirectoryPointers + PRESENT_WRITABLE, pageMapLevel4 + 8

        call    enterLongMode
        ljmp    $CODE_SELECTOR, $3f
        .code64
3:      call    loadSegments
        movl    $stacks + STACK_SIZE, %esp
        xorl    %ebp, %ebp
        call    runtimeMain
4:      cli
        hlt
        jmp     4b

        # Turns on long mode with the common tables. The caller jumps to 64-bit code. Uses eax, ecx, edx.
        .code32
enterLongMode:
        lgdt    gdtPointer
        movl    %cr4, %eax
        orl     $0x20, %eax                             # PAE
        movl    %eax, %cr4
        movl    $pageMapLevel4, %eax
        movl    %eax, %cr3
        movl    $0xC0000080, %ecx                       # IA32_EFER
        rdmsr
        orl     $0x100, %eax                            # LME
        wrmsr
        movl    %cr0, %eax
        andl    $0x9FFFFFFF, %eax                       # caches on: not CD, not NW
        orl     $0x80000001, %eax                       # PG, PE
        movl    %eax, %cr0
        ret

        .code64
loadSegments:
        movl    $DATA_SELECTOR, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        xorl    %eax, %eax
        movl    %eax, %fs
        movl    %eax, %gs
        ret

        # An application processor starts in real mode at the page in its start-up IPI. This code is
        # copied to 0x8000. The order in which processors arrive selects their stacks.
        .section .rodata
        .balign 16
        .globl  trampolineStart, trampolineEnd
        .code16
trampolineStart:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        lgdtl   0x8000 + (trampolineGDTPointer - trampolineStart)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $CODE32_SELECTOR, $applicationEntry
        .balign 8
trampolineGDTPointer:
        .word   gdtEnd - gdt - 1
        .long   gdt
trampolineEnd:

        .section .text.boot
        .code32
applicationEntry:
        movl    $DATA_SELECTOR, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $1, %ebx
        lock xaddl %ebx, processorsArrived
        incl    %ebx                                    # 1 for the first application processor
        cmpl    $MAXIMUM_PROCESSORS, %ebx
        jae     6f
        movl    %ebx, %edi                              # its index, Swift's first argument
        incl    %ebx
        imull   $STACK_SIZE, %ebx
        leal    stacks(%ebx), %esp
        movl    %esp, %ebx
        call    enterLongMode
        ljmp    $CODE_SELECTOR, $5f
        .code64
5:      call    loadSegments
        movl    %ebx, %esp
        xorl    %ebp, %ebp
        call    applicationMain
6:      cli
        hlt
        jmp     6b

        # Interrupt stubs: each leaves an error code (the processor's or 0) and its vector, and the
        # common part calls Swift: interruptArrived(vector, errorCode, instruction pointer).
        .text
        .balign 16
        .globl  interruptStubs
interruptStubs:
        .set    vector, 0
        .rept   256
        .balign 16
        .if     (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
        .else
        pushq   $0
        .endif
        pushq   $vector
        jmp     interruptCommon
        .set    vector, vector + 1
        .endr

interruptCommon:
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %rbp
        movq    %rsp, %rbp
        movl    80(%rbp), %edi
        movl    88(%rbp), %esi
        movq    96(%rbp), %rdx
        andq    $-16, %rsp
        cld
        call    interruptArrived
        movq    %rbp, %rsp
        popq    %rbp
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rax
        addq    $16, %rsp
        iretq

        # Functions that the compiler may call implicitly. rep movsb and stosb need no SSE.
        .globl  memcpy, memmove, memset
memmove:
        movq    %rdi, %rax
        movq    %rdi, %rcx
        subq    %rsi, %rcx
        cmpq    %rdx, %rcx
        jae     memcpy
        # The target overlaps the source, so copy backwards.
        movq    %rdx, %rcx
        leaq    -1(%rdi,%rdx), %rdi
        leaq    -1(%rsi,%rdx), %rsi
        std
        rep movsb
        cld
        ret
memcpy:
        movq    %rdi, %rax
        movq    %rdx, %rcx
        rep movsb
        ret
memset:
        movq    %rdi, %r8
        movl    %esi, %eax
        movq    %rdx, %rcx
        rep stosb
        movq    %r8, %rax
        ret

        .section .rodata
        .balign 8
gdt:    .quad   0
        .quad   0x00AF9A000000FFFF                      # 0x08: 64-bit code
        .quad   0x00CF92000000FFFF                      # 0x10: data
        .quad   0x00CF9A000000FFFF                      # 0x18: 32-bit code
gdtEnd:
gdtPointer:
        .word   gdtEnd - gdt - 1
        .quad   gdt

        .data
        .balign 8
        .globl  processorsArrived
processorsArrived:
        .long   0

        .bss
        .balign 4096
pageMapLevel4:
        .skip   4096
pageDirectoryPointers:
        .skip   4096
pageDirectories:
        .skip   4 * 4096
windowDirectoryPointers:
        .skip   4096
        .globl  windowDirectory
windowDirectory:
        .skip   4096
        .globl  interruptDescriptors
interruptDescriptors:
        .skip   4096
        .balign 16
stacks: .skip   STACK_SIZE * (MAXIMUM_PROCESSORS + 1)
