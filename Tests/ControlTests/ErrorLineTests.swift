import Control
import Testing

/// Compares the error line of each mistake word for word, without the program's name.
@Suite struct ErrorLineTests {
  /// A line that begins with `$` has the words of a command line (`''` is an empty word). The next line is its error
  /// line.
  private static let cases = """
    # From the issue.
    $ -device intel-iommu,x-flts=on
    -device intel-iommu,x-flts=on: x-flts is only available in scalable mode
    $ -m 1
    -m 1: 1 MiB is too little memory: at least 16 MiB
    $ -device nosuch
    -device nosuch: unknown device; nearest: edu, vfio-pci, virtio-blk
    $
    there is nothing to boot: add -kernel FILE (-help lists the options)
    # JSON, in QEMU's words.
    $ -device {"driver":"nix"}
    -device {"driver":"nix"}: 'nix' is not a valid device model name
    $ -device {"id":"x"}
    -device {"id":"x"}: Parameter 'driver' is missing
    $ -device {"driver":"edu","nosuch":1}
    -device {"driver":"edu","nosuch":1}: Property 'edu.nosuch' not found
    $ -device {"driver":"edu","dma_mask":"0x10"}
    -device {"driver":"edu","dma_mask":"0x10"}: Parameter 'dma_mask' expects uint64
    $ -device {"driver":"edu","dma_mask":true}
    -device {"driver":"edu","dma_mask":true}: Parameter 'dma_mask' expects uint64
    $ -device {"driver":"edu","addr":[1]}
    -device {"driver":"edu","addr":[1]}: Invalid parameter type for 'addr', expected int or str
    $ -device {"driver":"edu","addr":"zz"}
    -device {"driver":"edu","addr":"zz"}: Property 'edu.addr' doesn't take value 'zz'
    $ -device {"driver":"virtio-rng-pci","event_idx":"off"}
    -device {"driver":"virtio-rng-pci","event_idx":"off"}: Invalid parameter type for 'event_idx', expected: boolean
    $ -device {"driver":"edu"
    -device {"driver":"edu": JSON parse error, premature EOI
    $ -device {"driver":"edu"}x
    -device {"driver":"edu"}x: Expecting at most one JSON value
    $ -object {"qom-type":"nix","id":"a"}
    -object {"qom-type":"nix","id":"a"}: Parameter 'qom-type' does not accept value 'nix'
    $ -object {"qom-type":"rng-builtin"}
    -object {"qom-type":"rng-builtin"}: Parameter 'id' is missing
    $ -object {"qom-type":"rng-random","id":"a","filename":7}
    -object {"qom-type":"rng-random","id":"a","filename":7}: Invalid parameter type for 'filename', expected: string
    $ -object {"qom-type":"rng-random","id":"a","nosuch":7}
    -object {"qom-type":"rng-random","id":"a","nosuch":7}: Parameter 'nosuch' is unexpected
    # Options.
    $ -devcie x
    -devcie: unknown option; nearest: -device
    $ --kernal x
    --kernal: unknown option; nearest: -kernel
    $ -kernel
    -kernel: its argument is missing
    $ -kernel ''
    -kernel: the file name is missing
    $ disk.img
    disk.img: no option takes this; a disk image is given by -drive file=FILE,if=virtio
    $ -
    -: no option takes this; a disk image is given by -drive file=FILE,if=virtio
    $ -initrd i
    -initrd i: only allowed with -kernel
    $ -append ab
    -append ab: only allowed with -kernel
    $ -display gtk
    -display gtk: unknown display; the only choice: none
    $ -global virtio-blk-pci.serial=x
    -global virtio-blk-pci.serial=x: unknown global property; the only choice: \
    ICH9-LPC.acpi-pci-hotplug-with-bridge-support
    $ -global driver=ICH9-LPC,property=disable_s3,value=1
    -global driver=ICH9-LPC,property=disable_s3,value=1: unknown global property; the only choice: \
    ICH9-LPC.acpi-pci-hotplug-with-bridge-support
    $ -global driver=ICH9-LPC,property=acpi-pci-hotplug-with-bridge-support
    -global driver=ICH9-LPC,property=acpi-pci-hotplug-with-bridge-support: driver, property and value are needed, as \
    in DRIVER.PROPERTY=VALUE
    $ -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=maybe
    -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=maybe: ICH9-LPC.acpi-pci-hotplug-with-bridge-support must \
    be on or off, not 'maybe'
    $ -machine q35,x-pci-hotplug=shpc
    -machine q35,x-pci-hotplug=shpc: x-pci-hotplug must be acpi or native, not 'shpc'
    $ -machine q35,x-pci-hotplug=acpi -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off
    -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off: x-pci-hotplug and \
    ICH9-LPC.acpi-pci-hotplug-with-bridge-support are the same property, but have different values
    $ -monitor stdoi
    -monitor stdoi: unknown character backend; nearest: stdio
    $ -mon chardev=c
    -mon chardev=c: chardev "c" not found
    $ -mon mode=control
    -mon mode=control: Parameter 'chardev' is missing
    $ -mon c,pretty=on
    -mon c,pretty=on: 'pretty' is not compatible with HMP monitors
    $ -chardev sokcet,id=c
    -chardev sokcet,id=c: unknown character device; nearest: socket
    $ -chardev null
    -chardev null: chardev: no id specified
    $ -chardev null,id=c -chardev null,id=c
    -chardev null,id=c: Duplicate ID 'c' for chardev
    $ -chardev socket,id=c
    -chardev socket,id=c: chardev: socket: no host/path/fd given
    $ -chardev socket,id=c,host=localhost
    -chardev socket,id=c,host=localhost: chardev: socket: no port given
    $ -chardev socket,id=c,path=p,host=h,port=1
    -chardev socket,id=c,path=p,host=h,port=1: None or one of 'path', 'fd' or 'host' option required.
    $ -chardev file,id=c
    -chardev file,id=c: chardev: file: no filename given
    $ -chardev null,id=c -serial chardev:c -mon c
    -mon c: chardev 'c' is already in use
    $ -monitor stdio -qmp stdio
    -qmp stdio: cannot use stdio by multiple character devices
    $ -d iomu
    -d iomu: unknown log item; the only choice: iommu
    $ -serial stdoi
    -serial stdoi: unknown character backend; nearest: stdio
    $ -serial file:
    -serial file:: the file name is missing
    $ -serial unix:,server
    -serial unix:,server: chardev: socket: no host/path/fd given
    $ -serial unix:s,wait=on
    -serial unix:s,wait=on: 'wait' option is incompatible with socket in client connect mode
    $ -serial unix:s,sever=on
    -serial unix:s,sever=on: unknown property 'sever'; nearest: server
    $ -kernel k -serial stdio -serial null
    -serial null: 2 serial ports are requested, but the machine has 1 (COM1)
    # The machine.
    $ -M pc
    -M pc: type must be q35, not 'pc'
    $ -M q35,kernel-irqchip=on
    -M q35,kernel-irqchip=on: kernel-irqchip cannot be 'on': Nestling emulates the IOAPIC so that its interrupts go \
    through the remapping unit: only kernel-irqchip=split is possible
    $ -M q35,acel=kvm
    -M q35,acel=kvm: unknown property 'acel'; nearest: accel
    $ -accel tcg
    -accel tcg: accel must be kvm or qtest, not 'tcg'
    $ -cpu max
    -cpu max: unknown CPU model; the only choice: host
    $ -cpu host,+svm
    -cpu host,+svm: single CPU features cannot be selected yet: leave out '+svm'
    $ -smp 0
    -smp 0: cpus must be between 1 and 4096, not '0'
    $ -smp 4,dies=2
    -smp 4,dies=2: dies cannot be '2': CPUs are grouped into sockets, cores and threads only, so this must be 1
    $ -smp 3,cores=2
    -smp 3,cores=2: 3 CPUs cannot be split into groups of 2
    $ -smp 4,sockets=3,cores=1,threads=1
    -smp 4,sockets=3,cores=1,threads=1: sockets, cores and threads make 3 CPUs, not 4
    $ -kernel k -smp 4,threads=2
    -smp 4,threads=2: sockets and threads must be 1: for now, all CPUs are cores of one socket
    $ -smp 2,maxcpus=4
    -smp 2,maxcpus=4: maxcpus must be the same as cpus: CPUs cannot be hot-plugged
    $ -smp sockets=4096,cores=2
    -smp sockets=4096,cores=2: that is more than 4096 CPUs
    $ -m lots
    -m lots: size must be a size (a number, and K, M, G or T), not 'lots'
    $ -m 100T
    -m 100T: 102400 GiB is too much memory: at most 32768 GiB
    $ -m 67108865B
    -m 67108865B: 67108865 bytes of memory is not a multiple of the page size, 4 KiB
    $ -M memory-backend=ram
    -M memory-backend=ram: memory-backend: no object 'ram'
    $ -object memory-backend-memfd,id=ram,size=64M
    -object memory-backend-memfd,id=ram,size=64M: the object is not used: add -machine memory-backend=ram
    $ -m 1G -M memory-backend=r -object memory-backend-memfd,id=r,size=64M
    -M memory-backend=r: memory-backend has 64 MiB, but -m asks for 1 GiB
    $ -M memory-backend=r -object rng-builtin,id=r
    -M memory-backend=r: memory-backend: 'r' is an rng-builtin, not a memory-backend-memfd
    $ -object memory-backend-memfd,id=r,size=64M,hugetlbsize=2M
    -object memory-backend-memfd,id=r,size=64M,hugetlbsize=2M: hugetlbsize needs hugetlb=on
    # Devices and objects.
    $ -device ''
    -device: the device is missing
    $ -device =x
    -device =x: a name is missing before '='
    # Passthrough.
    $ -device vfio-pci,host=01:00.0
    -device vfio-pci,host=01:00.0: iommufd is missing: name an -object iommufd; VFIO's containers are not offered
    $ -device vfio-pci,host=01:00.0,fd=3,iommufd=i
    -device vfio-pci,host=01:00.0,fd=3,iommufd=i: give exactly one of host, sysfsdev and fd
    $ -device vfio-pci,host=01:00.0,iommufd=i,x-no-mmap=on
    -device vfio-pci,host=01:00.0,iommufd=i,x-no-mmap=on: x-no-mmap cannot be 'on': BARs are always mapped if that \
    is possible
    $ -device vfio-pci,host=01:00.0,iommufd=i,x-msix-relocation=bar2
    -device vfio-pci,host=01:00.0,iommufd=i,x-msix-relocation=bar2: x-msix-relocation cannot be 'bar2': the MSI-X table \
    stays where the device has it
    $ -device vfio-pci,host=01:00.0,iommufd=i,rombar=2
    -device vfio-pci,host=01:00.0,iommufd=i,rombar=2: rombar must be between 0 and 1, not '2'
    $ -device vfio-pci,host=01:00.0,iommufd=i,x-pci-device-id=7
    -device vfio-pci,host=01:00.0,iommufd=i,x-pci-device-id=7: x-pci-device-id cannot be '7': the guest sees the IDs \
    that the device has on the host
    $ -device vfio-pci,host=01:00.0,iommufd=i,x-no-kvm-msi=on
    -device vfio-pci,host=01:00.0,iommufd=i,x-no-kvm-msi=on: x-no-kvm-msi cannot be 'on': its interrupts go from VFIO \
    to KVM within the kernel
    $ -device virtio-blk-pic
    -device virtio-blk-pic: unknown device; nearest: virtio-blk-pci, virtio-blk
    $ -device intel-iommu,x-scalable-mod=on
    -device intel-iommu,x-scalable-mod=on: intel-iommu has no property 'x-scalable-mod'; nearest: \
    x-scalable-mode, scalable-mode
    $ -device intel-iommu,scalable-mode=maybe
    -device intel-iommu,scalable-mode=maybe: scalable-mode must be on or off, not 'maybe'
    $ -device intel-iommu,aw-bits=40
    -device intel-iommu,aw-bits=40: aw-bits must be 39, 48 or 57, not '40'
    $ -device intel-iommu,intremap=x
    -device intel-iommu,intremap=x: intremap must be on, off or auto, not 'x'
    $ -device intel-iommu,svm=on
    -device intel-iommu,svm=on: Need to set device IOTLB for svm
    $ -device intel-iommu,x-scalable-mode=on,device-iotlb=on,svm=on
    -device intel-iommu,x-scalable-mode=on,device-iotlb=on,svm=on: Need to set flts for svm
    $ -device intel-iommu,x-scalable-mode=on,x-flts=on,device-iotlb=on,svm=on
    -device intel-iommu,x-scalable-mode=on,x-flts=on,device-iotlb=on,svm=on: Need to set PASID support for svm
    $ -device intel-iommu,x-scalable-mode=on,x-flts=on,aw-bits=39
    -device intel-iommu,x-scalable-mode=on,x-flts=on,aw-bits=39: Scalable mode(x-flts=on): supported values for \
    aw-bits are: 48, 57
    $ -device intel-iommu,pasid-bits=8
    -device intel-iommu,pasid-bits=8: Need to set scalable mode for PASID
    $ -device intel-iommu,x-nested=on
    -device intel-iommu,x-nested=on: x-flts is only available in scalable mode
    $ -device intel-iommu,eim=on,intremap=off
    -device intel-iommu,eim=on,intremap=off: eim=on cannot be selected without intremap=on
    $ -device intel-iommu,stale-tm=on
    -device intel-iommu,stale-tm=on: stale-tm needs device-iotlb=on
    $ -device intel-iommu,x-scalable-mode=on,x-flts=on,dma-translation=off
    -device intel-iommu,x-scalable-mode=on,x-flts=on,dma-translation=off: dma-translation=off cannot be selected with \
    x-flts=on
    $ -device intel-iommu,scalable-mode=on,fsts=on,x-flts=off
    -device intel-iommu,scalable-mode=on,fsts=on,x-flts=off: fsts and x-flts are the same property, but have \
    different values
    $ -device intel-iommu -device intel-iommu,aw-bits=39
    -device intel-iommu,aw-bits=39: another intel-iommu already covers all devices: add devices= to one of the two
    $ -device intel-iommu,id=a -device intel-iommu
    -device intel-iommu: intel-iommu 'a' already covers all devices: add devices= to one of the two
    $ -device intel-iommu,devices=rng -device virtio-rng-pci,id=rng0
    -device intel-iommu,devices=rng: devices: 'rng' is neither the id of a PCI device nor an address on bus 0; \
    nearest: rng0
    $ -device intel-iommu,devices=04.1
    -device intel-iommu,devices=04.1: devices: '04.1' is neither the id of a PCI device nor an address on bus 0
    $ -device intel-iommu,devices=
    -device intel-iommu,devices=: devices must not be empty
    $ -trace vtd_reg_wrote
    -trace vtd_reg_wrote: unknown trace event; nearest: vtd_reg_write
    $ -trace file=x
    -trace file=x: the event is missing: PATTERN or enable=PATTERN
    $ -device intel-iommu,devices=exit -device isa-debug-exit,id=exit
    -device intel-iommu,devices=exit: devices: 'exit' is not a PCI device: no IOMMU can translate for it
    $ -device intel-iommu,id=a,devices=4 -device intel-iommu,devices=00:04.0
    -device intel-iommu,devices=00:04.0: devices: intel-iommu 'a' already covers '00:04.0' or a device below it
    $ -device intel-iommu,devices=rng0+02.0 -device virtio-rng-pci,id=rng0,addr=2
    -device intel-iommu,devices=rng0+02.0: devices: another intel-iommu already covers '02.0' or a device below it
    $ -device virtio-blk-pci
    -device virtio-blk-pci: drive is missing: name a -drive or -blockdev
    $ -device virtio-blk-pci,drive=d
    -device virtio-blk-pci,drive=d: drive: no drive 'd': no -drive or -blockdev is given
    $ -drive file=f,if=none,id=disk0 -device virtio-blk-pci,drive=disk
    -device virtio-blk-pci,drive=disk: drive: no drive 'disk'; nearest: disk0
    $ -drive file=f,if=virtio,id=d -device virtio-blk-pci,drive=d
    -device virtio-blk-pci,drive=d: drive: 'd' is in use by another virtio-blk-pci; only a read-only drive can \
    be shared
    $ -device vhost-user-blk-pci
    -device vhost-user-blk-pci: chardev is missing: name the -chardev socket of the back end
    $ -device vhost-user-fs-pci,chardev=c
    -device vhost-user-fs-pci,chardev=c: tag is missing: the guest mounts the folder by it
    $ -device vhost-user-blk-pci,chardev=c
    -device vhost-user-blk-pci,chardev=c: chardev "c" not found
    $ -chardev null,id=c -device vhost-user-blk-pci,chardev=c
    -device vhost-user-blk-pci,chardev=c: chardev 'c' cannot pass descriptors: vhost-user needs \
    socket,path=PATH
    $ -chardev socket,id=c,path=/x -device vhost-user-blk-pci,chardev=c -device vhost-user-fs-pci,chardev=c,tag=t
    -device vhost-user-fs-pci,chardev=c,tag=t: chardev 'c' is already in use
    $ -chardev socket,id=c,path=/x,reconnect=1 -serial chardev:c
    -serial chardev:c: chardev 'c': reconnect is only offered for vhost-user
    $ -chardev socket,id=c,path=/x,server=on,reconnect=1
    -chardev socket,id=c,path=/x,server=on,reconnect=1: 'reconnect' option is incompatible with socket in server \
    listen mode
    $ -device virtio-rng-pci,addr=1f
    -device virtio-rng-pci,addr=1f: addr: 1f.0 is taken by the ISA bridge
    $ -device virtio-rng-pci,addr=2,id=r -device virtio-rng-pci,addr=2.0
    -device virtio-rng-pci,addr=2.0: addr: 02.0 is taken by virtio-rng-pci 'r'
    $ -device edu,addr=12 -device edu,addr=12.1
    -device edu,addr=12.1: PCI: single function device can't be populated in function 12.1
    $ -device edu,addr=1a.3,multifunction=on -device edu,addr=1a
    -device edu,addr=1a: PCI: 1a.0 indicates single function, but 1a.3 is already populated.
    $ -device virtio-rng-pci,addr=zz
    -device virtio-rng-pci,addr=zz: addr must be a device number from 01 to 1e, hexadecimal, with an optional \
    function from .0 to .7, not 'zz'
    $ -device virtio-rng-pci,bus=pcie.1
    -device virtio-rng-pci,bus=pcie.1: Bus 'pcie.1' not found; nearest: pcie.0
    $ -device pcie-root-port,id=rp0 -device pcie-root-port,id=rp1
    -device pcie-root-port,id=rp1: chassis 0 already has a slot 0: give each root port its own chassis or slot
    $ -device pcie-root-port,id=rp0 -device virtio-rng-pci,bus=rp0,addr=1
    -device virtio-rng-pci,bus=rp0,addr=1: addr: slot 1 is not valid below a root port, which only allows plugging \
    into slot 0
    $ -device pcie-root-port,id=rp0 -device edu,bus=rp0,id=e -device edu,bus=rp0
    -device edu,bus=rp0: addr: 00.0 is taken by edu 'e'
    $ -device pcie-root-port,hotplug=later
    -device pcie-root-port,hotplug=later: hotplug must be on or off, not 'later'
    $ -device virtio-rng-pci,rng=r
    -device virtio-rng-pci,rng=r: rng: no object 'r': no -object is given
    $ -device virtio-rng-pci,period=0
    -device virtio-rng-pci,period=0: period must be between 1 and 4294967295, not '0'
    $ -device virtio-rng-pci,id=a -device virtio-rng-pci,id=a
    -device virtio-rng-pci,id=a: id 'a' is already taken
    $ -object rng-randon,id=a
    -object rng-randon,id=a: unknown object; nearest: rng-random
    $ -object rng-random
    -object rng-random: id is missing: every object needs one
    # Network cards.
    $ -nic user,model=e1000e
    -nic user,model=e1000e: model must be virtio-net-pci or virtio, not 'e1000e'
    $ -nic user,model=virtio-net
    -nic user,model=virtio-net: model must be virtio-net-pci or virtio, not 'virtio-net'
    $ -nic user,modle=virtio
    -nic user,modle=virtio: user has no property 'modle'; nearest: model
    $ -nic user,mq=on
    -nic user,mq=on: -nic cannot set 'mq': use -netdev with -device virtio-net-pci,netdev=ID,mq=
    $ -nic none,model=virtio
    -nic none,model=virtio: none has no property 'model'
    $ -nic user,mac=01:00:5e:00:00:01
    -nic user,mac=01:00:5e:00:00:01: mac must not be a multicast address
    $ -nic user,id=#net0
    -nic user,id=#net0: id must be a letter, then letters, digits, '-', '.' or '_', not '#net0'
    $ -nic tap,fd=file
    -nic tap,fd=file: fd must be a whole number (decimal, or hexadecimal with 0x), not 'file'
    $ -netdev user,id=n -nic user,id=n
    -nic user,id=n: Duplicate ID 'n' for netdev
    $ -nic user,addr=2 -nic user,addr=2
    -nic user,addr=2: addr: 02.0 is taken by another virtio-net-pci
    # Drives.
    $ -drive file=f
    -drive file=f: if=ide, QEMU's default, does not exist here: use if=none or if=virtio
    $ -drive if=none
    -drive if=none: file is missing
    $ -drive file=f,if=scsi
    -drive file=f,if=scsi: if must be none or virtio, not 'scsi'
    $ -drive file=f,if=none,format=qcow2
    -drive file=f,if=none,format=qcow2: format cannot be 'qcow2': only raw images are read
    $ -blockdev driver=qcow2,node-name=n
    -blockdev driver=qcow2,node-name=n: driver must be file or raw, not 'qcow2'
    $ -blockdev driver=file,filename=f
    -blockdev driver=file,filename=f: node-name is missing
    $ -blockdev driver=raw,node-name=n,file=m
    -blockdev driver=raw,node-name=n,file=m: file: no node 'm' is defined before this one
    $ -blockdev driver=raw,node-name=n
    -blockdev driver=raw,node-name=n: driver=raw needs file=NODE, or file.driver=file with file.filename
    $ -blockdev driver=raw,node-name=n,file.driver=file,file.filename=f,locking=on
    -blockdev driver=raw,node-name=n,file.driver=file,file.filename=f,locking=on: locking goes with driver=file; raw has file.locking
    $ -blockdev driver=file,node-name=n,filename=f,file.locking=off
    -blockdev driver=file,node-name=n,filename=f,file.locking=off: file.locking goes with file.filename
    $ -drive file=f,if=none,file.locking=maybe
    -drive file=f,if=none,file.locking=maybe: file.locking must be on, off or auto, not 'maybe'
    """

  private struct Case {
    var words: [String]
    var line = ""
  }

  private static func parsed() -> [Case] {
    var parsed: [Case] = []
    for line in cases.split(separator: "\n") where !line.hasPrefix("#") {
      if line.hasPrefix("$") {
        parsed.append(Case(words: line.split(separator: " ").dropFirst().map { $0 == "''" ? "" : String($0) }))
      } else if let last = parsed.indices.last {
        parsed[last].line += String(line)
      }
    }
    return parsed
  }

  @Test("each mistake gives its error line, word for word")
  func everyLineWordForWord() {
    let cases = Self.parsed()
    #expect(cases.count > 60)
    for wanted in cases {
      #expect(failure(wanted.words) == "nestling: " + wanted.line, "\(wanted.words)")
    }
  }

  @Test("control characters are escaped, and an error stays one line")
  func aLineStaysOneLine() {
    #expect(
      failure(["-device", "a\nb\u{1b}[2Jc\u{202e}"])
        == "nestling: -device a\\u{a}b\\u{1b}[2Jc\\u{202e}: unknown device; nearest: vfio-pci, dma-engine, edu"
    )
  }

  @Test("a long argument is cut in the error line")
  func aLongArgumentIsNotRepeatedWhole() throws {
    let line = try #require(failure(["-device", String(repeating: "x", count: 1 << 20)]))
    #expect(line.utf8.count < 400 && line.contains("xxx...: unknown device"))
  }
}
