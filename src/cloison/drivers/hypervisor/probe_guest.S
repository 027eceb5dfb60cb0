# A guest of some 300 bytes that proves an accelerator: it is the whole firmware of a machine and runs real mode,
# protected mode, long mode with page tables of its own, vector arithmetic in kernel mode, and timer interrupts that
# wake it from hlt. Then it leaves by isa-debug-exit with 0x2a. Anything less is no proof: there are hosts whose KVM
# opens, runs simple code in an instruction emulator, and stops at the first vector instruction of a guest kernel.
#
#   as --64 -o probe_guest.o probe_guest.S && ld -Ttext=0 --oformat=binary -o probe_guest.bin probe_guest.o
#
# The bytes are kept in probe_guest.py; a test compares. Linked at 0 = physical 0xf0000; padded to 64 KiB there.

.set PML4, 0x1000
.set PDPT, 0x2000
.set PD, 0x3000
.set IDT, 0x4000
.set PD_APIC, 0x5000
.set TICKS, 0x6000
.set STACK, 0x8000
.set ROM, 0xf0000
.set APIC, 0xfee00000
.set WANTED_TICKS, 3

.code16
real:
    cli
    lgdtl %cs:gdt_pointer
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $(ROM + protected)

.code32
protected:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $STACK, %esp
    cld
    xorl %eax, %eax
    movl $PML4, %edi
    movl $0x1800, %ecx
    rep stosl
    movl $(PDPT + 3), PML4
    movl $(PD + 3), PDPT
    movl $(PD_APIC + 3), PDPT + 3 * 8
    movl $(APIC + 0x93), PD_APIC + ((APIC >> 21) & 511) * 8
    movl $PD, %edi
    movl $0x83, %eax
    movl $512, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    movl %cr4, %eax
    orl $0x220, %eax            # PAE, OSFXSR
    movl %eax, %cr4
    movl $PML4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl %cr0, %eax
    andl $~0x4, %eax            # no EM
    orl $0x80000002, %eax       # PG, MP
    movl %eax, %cr0
    ljmpl $0x18, $(ROM + long_mode)

.code64
long_mode:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $STACK, %esp
    # vector arithmetic in kernel mode
    movl $0x1234567, %eax
    movd %eax, %xmm0
    movd %eax, %xmm1
    paddd %xmm0, %xmm1
    pshufd $0, %xmm1, %xmm2
    movd %xmm2, %eax
    cmpl $0x2468ace, %eax
    jne fail
    # one gate: the timer
    movl $IDT + 0x20 * 16, %edi
    movl $(ROM + tick), %eax
    movw %ax, (%rdi)
    movw $0x18, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    shrl $16, %eax
    movl %eax, 6(%rdi)
    lidt idt_pointer(%rip)
    # interrupt controller: vectors from 0x20, only the timer
    movb $0x11, %al
    outb %al, $0x20
    movb $0x20, %al
    outb %al, $0x21
    movb $0x04, %al
    outb %al, $0x21
    movb $0x01, %al
    outb %al, $0x21
    movb $0xfe, %al
    outb %al, $0x21
    # local APIC on, its first pin passes the interrupt controller through
    movl $APIC, %edi
    movl $0x1ff, 0xf0(%rdi)
    movl $0x700, 0x350(%rdi)
    # timer: 1000 a second
    movb $0x34, %al
    outb %al, $0x43
    movb $0xa9, %al
    outb %al, $0x40
    movb $0x04, %al
    outb %al, $0x40
2:  sti
    hlt
    cli
    cmpl $WANTED_TICKS, TICKS
    jb 2b
    movl $0x2a, %eax
    outl %eax, $0xf4
    jmp 3f                      # from QEMU 9 on the guest runs a moment longer
fail:
    movl $0x01, %eax
    outl %eax, $0xf4
3:  hlt
    jmp 3b

tick:
    pushq %rax
    incl TICKS
    movb $0x20, %al
    outb %al, $0x20
    popq %rax
    iretq

.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # 0x08 code, 32 bit
    .quad 0x00cf93000000ffff    # 0x10 data
    .quad 0x00af9b000000ffff    # 0x18 code, 64 bit
gdt_pointer:
    .word 31
    .long ROM + gdt
idt_pointer:
    .word 0x21 * 16 - 1
    .quad IDT
