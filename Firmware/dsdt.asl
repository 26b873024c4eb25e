// dsdt.asl: the board's devices that cannot be enumerated: the PCI Express host bridge with its windows and interrupt
// routing, the devices on the ISA bus behind it, and the soft-off state (ACPI 6.5). Compile it with:
//   Firmware/build-dsdt
//
// The addresses are the board's fixed ones (Sources/Machine/ACPI/ACPIPlatform.swift has the same). What depends on the
// machine is in a second table, the SSDT (Sources/Machine/ACPI/DynamicValues.swift): names for the 64-bit window, the
// highest bus number and whether hotplug is native, and a device for each slot.
DefinitionBlock ("", "DSDT", 2, "NESTLI", "NESTLING", 0x00000001)
{
    // Base and length in bytes of the memory window above 4 GiB. A length of zero: there is no such window.
    External (\M64B, IntObj)
    External (\M64L, IntObj)
    // The highest bus number.
    External (\LBUS, IntObj)
    // Not zero: hotplug is native. The slot registers of PCI Express report plugs and unplugs.
    External (\NHPC, IntObj)
    // PNTF (slot, value): sends `Notify` with this value to the device of this slot.
    External (\_SB.PCI0.PNTF, MethodObj)

    // SLP_TYP of the soft-off state, for PM1a_CNT and PM1b_CNT.
    Name (\_S5, Package () { 0, 0, 0, 0 })

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_SEG, 0)
            Name (_BBN, 0)

            Name (WNDW, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,
                    0x0000, 0x0000, 0x0000, 0x0000, 0x0001, , , BUSN)
                // The ports of the configuration mechanism: CONFIG_ADDRESS and CONFIG_DATA.
                IO (Decode16, 0x0CF8, 0x0CF8, 0x01, 0x08)
                // Ports below 0xCF8, for the devices on the ISA bus; then ports from 0x1000 on, for the I/O BARs
                // of PCI functions.
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0x0000, 0x0000, 0x0CF7, 0x0000, 0x0CF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0x0000, 0x1000, 0xFFFF, 0x0000, 0xF000)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x00000000, 0xC0000000, 0xFEBFFFFF, 0x00000000, 0x3EC00000)
            })

            Name (WNDH, ResourceTemplate ()
            {
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                    0x0000000000000000, 0x0000000100000000, 0x00000001FFFFFFFF, 0x0000000000000000,
                    0x0000000100000000, , , HIGH)
            })

            Method (_CRS, 0, Serialized)
            {
                CreateWordField (WNDW, ^BUSN._MAX, BMAX)
                CreateWordField (WNDW, ^BUSN._LEN, BLEN)
                BMAX = \LBUS
                BLEN = \LBUS + 1
                If (\M64L == 0)
                {
                    Return (WNDW)
                }
                CreateQWordField (WNDH, ^HIGH._MIN, HMIN)
                CreateQWordField (WNDH, ^HIGH._MAX, HMAX)
                CreateQWordField (WNDH, ^HIGH._LEN, HLEN)
                HMIN = \M64B
                HMAX = \M64B + \M64L - 1
                HLEN = \M64L
                Return (ConcatenateResTemplate (WNDW, WNDH))
            }

            // Grants control of features (PCI Firmware Specification 3.3, 4.5.1): power management
            // events (2), advanced error reporting (3), the PCI Express capability (4), and native
            // hotplug (0) if the machine uses it. Not granted, because the board has none of them:
            // hotplug by an SHPC, the older hotplug controller (1), latency tolerance reporting (5),
            // downstream port containment (7).
            Method (_OSC, 4, NotSerialized)
            {
                CreateDWordField (Arg3, 0x00, STAT)
                If (Arg0 != ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766"))
                {
                    // Unrecognized UUID.
                    STAT |= 0x04
                    Return (Arg3)
                }
                If ((Arg1 != 1) || (Arg2 < 3))
                {
                    // Unrecognized revision.
                    STAT |= 0x08
                    Return (Arg3)
                }
                CreateDWordField (Arg3, 0x08, CTRL)
                Local0 = CTRL & 0x1C
                If (\NHPC)
                {
                    Local0 |= CTRL & 0x01
                }
                If (Local0 != CTRL)
                {
                    // Capabilities masked.
                    STAT |= 0x10
                    CTRL = Local0
                }
                Return (Arg3)
            }

            // Hotplug by methods, with QEMU's registers and names (Sources/Devices/Chips/
            // ACPIHotplugRegisters.swift). A method holds the mutex BLCK from its write of BNUM to its
            // last access to that slot's registers.
            OperationRegion (PCIH, SystemIO, 0x0CC0, 0x24)
            Field (PCIH, DWordAcc, NoLock, WriteAsZeros)
            {
                // Bit 0 of PCIU: a device has appeared. Bit 0 of PCID: a device is to be ejected. A write of
                // bit 0 of B0EJ ejects the device.
                PCIU, 32,
                PCID, 32,
                B0EJ, 32,
                // The slot that the other registers refer to.
                Offset (0x10),
                BNUM, 32,
                // The first two arguments of _OST: the event that is reported on, and the status.
                Offset (0x18),
                OSTE, 32,
                OSTS, 32,
                // The lowest slot with bit 0 of PCIU or PCID; all ones: there is none.
                NEXT, 32
            }

            Mutex (BLCK, 0)

            // An operating system clears the events from before its start. A write of NEXT raises the
            // event again if a slot has a bit of PCIU or PCID.
            Method (_INI, 0, NotSerialized)
            {
                NEXT = 0
            }

            // Ejects the device of slot Arg0.
            Method (PCEJ, 1, NotSerialized)
            {
                Acquire (BLCK, 0xFFFF)
                BNUM = Arg0
                B0EJ = 1
                Release (BLCK)
            }

            // Writes a report of _OST on slot Arg0: source event Arg1 and status Arg2.
            Method (POST, 3, NotSerialized)
            {
                Acquire (BLCK, 0xFFFF)
                BNUM = Arg0
                OSTE = Arg1
                OSTS = Arg2
                Release (BLCK)
            }

            // Notifies, slot by slot, a new device (1, device check) and a device to eject (3, eject request).
            Method (PCNT, 0, NotSerialized)
            {
                Acquire (BLCK, 0xFFFF)
                Local0 = NEXT
                While (Local0 != 0xFFFFFFFF)
                {
                    BNUM = Local0
                    Local1 = PCIU & 1
                    Local2 = PCID & 1
                    If (Local1)
                    {
                        PNTF (Local0, 1)
                    }
                    If (Local2)
                    {
                        PNTF (Local0, 3)
                    }
                    // The slot has no event, or does not exist. Continuing would loop forever.
                    If (!(Local1 | Local2))
                    {
                        Break
                    }
                    Local0 = NEXT
                }
                Release (BLCK)
            }

            // Device D, pin P (INTA is 0): global system interrupt 16 + ((D + P) & 7).
            Name (_PRT, Package ()
            {
                Package () { 0x0000FFFF, 0, 0, 16 }, Package () { 0x0000FFFF, 1, 0, 17 },
                Package () { 0x0000FFFF, 2, 0, 18 }, Package () { 0x0000FFFF, 3, 0, 19 },
                Package () { 0x0001FFFF, 0, 0, 17 }, Package () { 0x0001FFFF, 1, 0, 18 },
                Package () { 0x0001FFFF, 2, 0, 19 }, Package () { 0x0001FFFF, 3, 0, 20 },
                Package () { 0x0002FFFF, 0, 0, 18 }, Package () { 0x0002FFFF, 1, 0, 19 },
                Package () { 0x0002FFFF, 2, 0, 20 }, Package () { 0x0002FFFF, 3, 0, 21 },
                Package () { 0x0003FFFF, 0, 0, 19 }, Package () { 0x0003FFFF, 1, 0, 20 },
                Package () { 0x0003FFFF, 2, 0, 21 }, Package () { 0x0003FFFF, 3, 0, 22 },
                Package () { 0x0004FFFF, 0, 0, 20 }, Package () { 0x0004FFFF, 1, 0, 21 },
                Package () { 0x0004FFFF, 2, 0, 22 }, Package () { 0x0004FFFF, 3, 0, 23 },
                Package () { 0x0005FFFF, 0, 0, 21 }, Package () { 0x0005FFFF, 1, 0, 22 },
                Package () { 0x0005FFFF, 2, 0, 23 }, Package () { 0x0005FFFF, 3, 0, 16 },
                Package () { 0x0006FFFF, 0, 0, 22 }, Package () { 0x0006FFFF, 1, 0, 23 },
                Package () { 0x0006FFFF, 2, 0, 16 }, Package () { 0x0006FFFF, 3, 0, 17 },
                Package () { 0x0007FFFF, 0, 0, 23 }, Package () { 0x0007FFFF, 1, 0, 16 },
                Package () { 0x0007FFFF, 2, 0, 17 }, Package () { 0x0007FFFF, 3, 0, 18 },
                Package () { 0x0008FFFF, 0, 0, 16 }, Package () { 0x0008FFFF, 1, 0, 17 },
                Package () { 0x0008FFFF, 2, 0, 18 }, Package () { 0x0008FFFF, 3, 0, 19 },
                Package () { 0x0009FFFF, 0, 0, 17 }, Package () { 0x0009FFFF, 1, 0, 18 },
                Package () { 0x0009FFFF, 2, 0, 19 }, Package () { 0x0009FFFF, 3, 0, 20 },
                Package () { 0x000AFFFF, 0, 0, 18 }, Package () { 0x000AFFFF, 1, 0, 19 },
                Package () { 0x000AFFFF, 2, 0, 20 }, Package () { 0x000AFFFF, 3, 0, 21 },
                Package () { 0x000BFFFF, 0, 0, 19 }, Package () { 0x000BFFFF, 1, 0, 20 },
                Package () { 0x000BFFFF, 2, 0, 21 }, Package () { 0x000BFFFF, 3, 0, 22 },
                Package () { 0x000CFFFF, 0, 0, 20 }, Package () { 0x000CFFFF, 1, 0, 21 },
                Package () { 0x000CFFFF, 2, 0, 22 }, Package () { 0x000CFFFF, 3, 0, 23 },
                Package () { 0x000DFFFF, 0, 0, 21 }, Package () { 0x000DFFFF, 1, 0, 22 },
                Package () { 0x000DFFFF, 2, 0, 23 }, Package () { 0x000DFFFF, 3, 0, 16 },
                Package () { 0x000EFFFF, 0, 0, 22 }, Package () { 0x000EFFFF, 1, 0, 23 },
                Package () { 0x000EFFFF, 2, 0, 16 }, Package () { 0x000EFFFF, 3, 0, 17 },
                Package () { 0x000FFFFF, 0, 0, 23 }, Package () { 0x000FFFFF, 1, 0, 16 },
                Package () { 0x000FFFFF, 2, 0, 17 }, Package () { 0x000FFFFF, 3, 0, 18 },
                Package () { 0x0010FFFF, 0, 0, 16 }, Package () { 0x0010FFFF, 1, 0, 17 },
                Package () { 0x0010FFFF, 2, 0, 18 }, Package () { 0x0010FFFF, 3, 0, 19 },
                Package () { 0x0011FFFF, 0, 0, 17 }, Package () { 0x0011FFFF, 1, 0, 18 },
                Package () { 0x0011FFFF, 2, 0, 19 }, Package () { 0x0011FFFF, 3, 0, 20 },
                Package () { 0x0012FFFF, 0, 0, 18 }, Package () { 0x0012FFFF, 1, 0, 19 },
                Package () { 0x0012FFFF, 2, 0, 20 }, Package () { 0x0012FFFF, 3, 0, 21 },
                Package () { 0x0013FFFF, 0, 0, 19 }, Package () { 0x0013FFFF, 1, 0, 20 },
                Package () { 0x0013FFFF, 2, 0, 21 }, Package () { 0x0013FFFF, 3, 0, 22 },
                Package () { 0x0014FFFF, 0, 0, 20 }, Package () { 0x0014FFFF, 1, 0, 21 },
                Package () { 0x0014FFFF, 2, 0, 22 }, Package () { 0x0014FFFF, 3, 0, 23 },
                Package () { 0x0015FFFF, 0, 0, 21 }, Package () { 0x0015FFFF, 1, 0, 22 },
                Package () { 0x0015FFFF, 2, 0, 23 }, Package () { 0x0015FFFF, 3, 0, 16 },
                Package () { 0x0016FFFF, 0, 0, 22 }, Package () { 0x0016FFFF, 1, 0, 23 },
                Package () { 0x0016FFFF, 2, 0, 16 }, Package () { 0x0016FFFF, 3, 0, 17 },
                Package () { 0x0017FFFF, 0, 0, 23 }, Package () { 0x0017FFFF, 1, 0, 16 },
                Package () { 0x0017FFFF, 2, 0, 17 }, Package () { 0x0017FFFF, 3, 0, 18 },
                Package () { 0x0018FFFF, 0, 0, 16 }, Package () { 0x0018FFFF, 1, 0, 17 },
                Package () { 0x0018FFFF, 2, 0, 18 }, Package () { 0x0018FFFF, 3, 0, 19 },
                Package () { 0x0019FFFF, 0, 0, 17 }, Package () { 0x0019FFFF, 1, 0, 18 },
                Package () { 0x0019FFFF, 2, 0, 19 }, Package () { 0x0019FFFF, 3, 0, 20 },
                Package () { 0x001AFFFF, 0, 0, 18 }, Package () { 0x001AFFFF, 1, 0, 19 },
                Package () { 0x001AFFFF, 2, 0, 20 }, Package () { 0x001AFFFF, 3, 0, 21 },
                Package () { 0x001BFFFF, 0, 0, 19 }, Package () { 0x001BFFFF, 1, 0, 20 },
                Package () { 0x001BFFFF, 2, 0, 21 }, Package () { 0x001BFFFF, 3, 0, 22 },
                Package () { 0x001CFFFF, 0, 0, 20 }, Package () { 0x001CFFFF, 1, 0, 21 },
                Package () { 0x001CFFFF, 2, 0, 22 }, Package () { 0x001CFFFF, 3, 0, 23 },
                Package () { 0x001DFFFF, 0, 0, 21 }, Package () { 0x001DFFFF, 1, 0, 22 },
                Package () { 0x001DFFFF, 2, 0, 23 }, Package () { 0x001DFFFF, 3, 0, 16 },
                Package () { 0x001EFFFF, 0, 0, 22 }, Package () { 0x001EFFFF, 1, 0, 23 },
                Package () { 0x001EFFFF, 2, 0, 16 }, Package () { 0x001EFFFF, 3, 0, 17 },
                Package () { 0x001FFFFF, 0, 0, 23 }, Package () { 0x001FFFFF, 1, 0, 16 },
                Package () { 0x001FFFFF, 2, 0, 17 }, Package () { 0x001FFFFF, 3, 0, 18 }
            })

            Device (ISA)
            {
                Name (_ADR, 0x001F0000)

                Device (COM1)
                {
                    Name (_HID, EisaId ("PNP0501"))
                    Name (_UID, 1)
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x03F8, 0x03F8, 0x01, 0x08)
                        IRQNoFlags () { 4 }
                    })
                }

                Device (RTC)
                {
                    Name (_HID, EisaId ("PNP0B00"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0070, 0x0070, 0x01, 0x02)
                    })
                }
            }
        }

        // Reserved resources: the enhanced configuration space, the ports of fw_cfg, of power
        // management and of hotplug.
        Device (RSVD)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xB0000000, 0x10000000)
                IO (Decode16, 0x0510, 0x0510, 0x01, 0x02)
                IO (Decode16, 0x0600, 0x0600, 0x01, 0x0C)
                IO (Decode16, 0x0620, 0x0620, 0x01, 0x10)
                IO (Decode16, 0x0CC0, 0x0CC0, 0x01, 0x24)
            })
        }
    }

    Scope (\_GPE)
    {
        // General-purpose event 1, edge-triggered: a slot has an event.
        Method (_E01, 0, NotSerialized)
        {
            \_SB.PCI0.PCNT ()
        }
    }
}
