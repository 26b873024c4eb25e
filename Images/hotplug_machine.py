"""hotplug_machine: one virtual machine with empty root ports, whose guest reports what appears below them.
  machine = hotplug_machine.Machine(".build/release/nestling", "/tmp/scratch", way="acpi", ports=4); machine.ready()

Images/hotplug-storm, Tests/compare-hotplug, Tests/lab/hotplug and network_machine use this module. The VMM is Nestling
or a QEMU; both take the same options. The module has a small QMP client instead of QEMU's own (qemu.qmp). The client
records when each message and each line of the guest arrives. One thread waits for both with select(), because asyncio
would be too slow on the lab's emulated processor.

Environment:
  KERNEL, INITRD  the guest's images (built with Images/kernel and Images/initramfs)
"""
import collections, json, os, re, select, socket, struct, subprocess, sys, time

images = os.path.dirname(os.path.realpath(__file__))
first_slot = 4  # the device number of the first root port, on pcie.0

# The layout of a disk, which Images/guest/hotplug.c reads: 4 KiB blocks of 64-bit words.
MAGIC, BLOCK, FIXED, WRITTEN, BLOCKS = 0x676C7074756F6821, 4096, 64, 256, 2048
MASK = (1 << 64) - 1


def word(seed, block, generation, index):
    first = ((seed << 48) ^ (block << 32) ^ generation) & MASK
    return (first * 0x9E3779B97F4A7C15 + index * 0x632BE59BD9B4E019) & MASK


def make_disk(path, seed):
    with open(path, "wb") as file:
        for block in range(FIXED):
            words = [word(seed, block, 0, index) for index in range(BLOCK // 8)]
            if block == 0:
                words[:2] = MAGIC, seed
            file.write(struct.pack(f"<{len(words)}Q", *words))
        file.truncate(BLOCKS * BLOCK)


def holds(path, seed, generation):
    """Returns whether each of the 16 blocks that the guest writes begins with the pattern of this generation (the
    number that identifies the guest's write, from its line "guest: ok")."""
    with open(path, "rb") as file:
        file.seek(WRITTEN * BLOCK)
        data = file.read(16 * BLOCK)
    return all(struct.unpack_from("<Q", data, block * BLOCK)[0] == word(seed, WRITTEN + block, generation, 0)
               for block in range(16))


def has_usable_kvm():
    """Returns whether this machine's /dev/kvm runs guests, by the same rule as Images/lab."""
    if not (os.access("/dev/kvm", os.R_OK | os.W_OK)):
        return False
    with open("/proc/cpuinfo", encoding="ascii") as file:
        return re.search(r"\b(vmx|svm)\b", file.read()) is not None


def enter_lab(seconds):
    """Sets KERNEL and INITRD if they are unset. Then, if this machine cannot run KVM guests, replaces this process with
    the same command in Images/lab, and does not return."""
    for name, recipe in ("KERNEL", ["kernel", "bzImage"]), ("INITRD", ["initramfs", "guest"]):
        if name not in os.environ:
            command = [os.path.join(images, recipe[0]), *recipe[1:]]
            os.environ[name] = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    if has_usable_kvm():
        return
    os.environ.setdefault("LAB_SECONDS", str(seconds))
    os.execv(os.path.join(images, "lab"), ["lab", sys.executable, *sys.argv])


class Failure(Exception):
    """A machine or its guest failed."""


class Machine:
    """A virtual machine. The constructor starts it. `lines` and `events` hold all lines and events, each with its
    time.monotonic()."""

    def __init__(self, vmm, scratch, way="acpi", ports=1, cpus=2, iommu="none", memory=256, words="", options=(),
                 kernel=None, initrd=None, run="hotplug"):
        self.vmm, self.scratch, self.way, self.memory = vmm, scratch, way, memory
        self.lines, self.events, self.answers = [], [], {}
        self.on_line = self.on_event = lambda when, what: None
        version = subprocess.run([vmm, "--version"], stdout=subprocess.PIPE, check=True, text=True).stdout
        version = version.split("\n")[0]
        self.name = re.sub(r"(\S+) emulator version (\S+).*", r"\1 \2", version).strip()
        self.is_qemu = self.name.startswith("QEMU")
        self.has_unit = iommu != "none"
        self.path = os.path.join(scratch, "qmp")
        self.second_path = os.path.join(scratch, "qmp2")
        for path in self.path, self.second_path:
            if os.path.exists(path):
                os.unlink(path)
        command = [vmm, "-accel", "kvm", "-M", "q35,kernel-irqchip=split", "-cpu", "host", "-m", f"{memory}M",
                   "-smp", str(cpus), "-display", "none", "-nodefaults", "-serial", "stdio",
                   "-kernel", kernel or os.environ["KERNEL"], "-append",
                   f"console=ttyS0 quiet printk.time=1 nestling.run={run} {'intel_iommu=on' * self.has_unit} {words}",
                   "-qmp", f"unix:{self.path},server=on,wait=off", "-qmp", f"unix:{self.second_path},server=on,wait=off"]
        # An empty initrd means none.
        if initrd != "":
            command += ["-initrd", initrd or os.environ["INITRD"]]
        if way == "native":
            command += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
        if self.has_unit:
            command += ["-device", self.unit(iommu)]
        for port in range(ports):
            command += ["-device", f"pcie-root-port,id=rp{port},bus=pcie.0,addr={first_slot + port:#x},"
                        f"chassis={port + 1},slot={port + 1}"]
        self.errors = os.path.join(scratch, "errors")
        self.began = time.monotonic()
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(command + list(options), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=errors)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.console, self.message = b"", b""
        self.sources = [self.process.stdout]
        self.line_began = 0.0
        self.connect()

    def unit(self, mode):
        """Returns the argument of -device for this VMM's intel-iommu. QEMU 11 renamed x-scalable-mode and x-flts to
        scalable-mode and fsts."""
        if mode == "legacy":
            return "intel-iommu,intremap=on"
        known = subprocess.run([self.vmm, "-device", "intel-iommu,help"], stdout=subprocess.PIPE, text=True,
                               check=False).stdout if self.is_qemu else "x-scalable-mode x-flts"
        scalable = "x-scalable-mode" if "x-scalable-mode" in known else "scalable-mode"
        first = next((name for name in ("x-flts", "fsts") if name in known), None)
        if mode == "first" and not first:
            raise Failure(f"{self.name} has no first stage")
        return f"intel-iommu,intremap=on,{scalable}=on" + (f",{first}={'on' if mode == 'first' else 'off'}" if first else "")

    def connect(self):
        self.socket = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 30
        while True:
            try:
                self.socket.connect(self.path)
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.fail_to_start()
                time.sleep(0.02)
        self.sources.append(self.socket)
        self.next_id = 0
        try:
            self.ask("qmp_capabilities")
        except ConnectionError:
            # A VMM with a mistake in its options may listen before it ends.
            self.fail_to_start()

    def fail_to_start(self):
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with open(self.errors, encoding="utf-8") as file:
            raise Failure(f"{self.name} does not start: {file.read().strip()}") from None

    # Input.

    def pump(self, seconds):
        """Waits up to `seconds` for input, and handles up to 64 KiB from each source. Returns whether there was
        input."""
        ready, _, _ = select.select(self.sources, [], [], max(0, seconds))
        now = time.monotonic()
        for source in ready:
            if source is self.socket:
                self.take_messages(self.socket.recv(1 << 16), now)
            else:
                self.take_lines(os.read(self.process.stdout.fileno(), 1 << 16), now)
        return bool(ready)

    def take_messages(self, data, now):
        if not data:
            # The VMM has closed QMP. The last lines of the console may still arrive. The machine has ended when the
            # console ends.
            self.sources.remove(self.socket)
        self.message += data
        *complete, self.message = self.message.split(b"\n")
        for line in complete:
            message = json.loads(line)
            if "event" in message:
                self.events.append((now, message))
                self.on_event(now, message)
            elif "id" in message:
                self.answers[message["id"]] = now, message

    def take_lines(self, data, now):
        if not data:
            raise Failure(f"{self.name} ended")
        # The time of a line is the time at which its first character arrived.
        if not self.console:
            self.line_began = now
        self.console += data
        *complete, self.console = self.console.split(b"\n")
        for number, line in enumerate(complete):
            text = line.decode("utf-8", "replace").strip("\r")
            began = self.line_began if number == 0 else now
            self.lines.append((began, text))
            self.on_line(began, text)
        if complete:
            self.line_began = now

    def wait(self, condition, seconds, what):
        """Waits until condition() is true. Returns its value."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end:
                raise Failure(f"waited {seconds} s in vain for {what}")
            self.pump(end - time.monotonic())
        return value

    def wait_line(self, pattern, seconds, since=0):
        """Returns the time and the match of the first line, from number `since` on, that matches the pattern."""
        search = re.compile(pattern).search
        position = since

        def found():
            nonlocal position
            while position < len(self.lines):
                when, line = self.lines[position]
                position += 1
                if match := search(line):
                    return when, match
            return None
        return self.wait(found, seconds, f"a line with '{pattern}'")

    def wait_event(self, name, seconds, since=0, **data):
        def found():
            for when, event in self.events[since:]:
                if event["event"] == name and all(event["data"].get(key) == value for key, value in data.items()):
                    return when, event
            return None
        return self.wait(found, seconds, f"{name} {data}")

    # Output.

    def send(self, name, arguments=None):
        """Sends a command without waiting for the answer. Returns the id of the command, and the time just before it
        was sent."""
        self.next_id += 1
        request = {"execute": name, "id": self.next_id}
        if arguments:
            request["arguments"] = {key.replace("_", "-") if key != "iommu_platform" else key: value
                                    for key, value in arguments.items()}
        data = json.dumps(request).encode() + b"\n"
        now = time.monotonic()
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Failure(f"cannot send a command to {self.name}: {error}") from None
        return self.next_id, now

    def answer(self, number, seconds=20):
        _, message = self.wait(lambda: self.answers.pop(number, None), seconds, "an answer on QMP")
        if "error" in message:
            raise Failure(f"{message['error']['class']}: {message['error']['desc']}")
        return message["return"]

    def ask(self, name, **arguments):
        return self.answer(self.send(name, arguments)[0])

    def guest(self, command):
        """Sends one of the commands of Images/guest/hotplug.c."""
        try:
            self.process.stdin.write(command.encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Failure(f"cannot write to the console of {self.name}: {error}") from None

    def ready(self, seconds=120, since=0):
        self.wait_line(r"^guest: ready ", seconds, since)

    def device(self, driver, port, **properties):
        """Returns the arguments of device_add for a device below a port."""
        arguments = {"driver": driver, "id": f"d{port}", "bus": f"rp{port}", **properties}
        if driver.startswith("virtio-") and self.has_unit:
            arguments["iommu_platform"] = True
        return arguments

    def log(self):
        """Returns the guest kernel's log since the last call."""
        since = len(self.lines)
        self.guest("log")
        self.wait_line("^guest: log ends", 60, since)
        return [line[len("guest: log: "):] for _, line in self.lines[since:] if line.startswith("guest: log: ")]

    def end(self):
        """Makes the guest check its log and power off. Returns a list of messages: the guest's errors, and the VMM's if
        its exit status is not 0."""
        status = None
        try:
            if self.process.poll() is None:
                self.guest("end")
            # wait raises Failure when the output ends.
            self.wait(lambda: False, 60, "the guest's end")
        except Failure:
            pass
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.close()
        wrong = self.complaints()
        if not any(line == "guest: done" for _, line in self.lines):
            wrong.append("the guest did not run to its end")
        if status != 0:
            with open(self.errors, encoding="utf-8", errors="replace") as file:
                wrong += [f"{self.name} ended with status {status}", *file.read().splitlines()[-5:]]
        return wrong

    def complaints(self):
        """Returns the guest's lines that report an error."""
        bad = re.compile(r"guest: FAIL|guest: log: .*(WARNING:|BUG:|Oops|DMAR:.*fault (addr|reason))|Kernel panic|"
                         r"^.{0,20}(BUG|Oops):")
        # Leaves out the warning of kernel/fpu/xstate.c that the lab causes: the emulated processor and the kernel's
        # XSAVE code disagree about a size.
        return [line for _, line in self.lines if bad.search(line) and "kernel/fpu/xstate.c" not in line]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self):
        self.socket.close()
        try:
            self.process.stdin.close()
        except OSError:
            pass  # the VMM has closed its end
        self.process.stdout.close()

    def holdings(self):
        """Returns the number of the VMM's descriptors, threads and mappings of each kind, and its memory (PSS, in KiB)
        without guest RAM."""
        base = f"/proc/{self.process.pid}"
        kinds = collections.Counter()
        for number in os.listdir(base + "/fd"):
            try:
                kinds["fd " + re.sub(r"\d+", "N", os.readlink(f"{base}/fd/{number}"))] += 1
            except OSError:
                pass
        for number in os.listdir(base + "/task"):
            try:
                with open(f"{base}/task/{number}/comm", encoding="utf-8") as file:
                    kinds["thread " + re.sub(r"\d+", "N", file.read().strip())] += 1
            except OSError:
                pass
        memory = 0
        is_ram = False
        with open(base + "/smaps", encoding="utf-8") as file:
            for line in file:
                if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)", line):
                    kinds["map " + re.sub(r"\d+", "N", mapping[1] or "anonymous")] += 1
                elif size := re.match(r"Size:\s+(\d+)", line):
                    is_ram = int(size[1]) >= self.memory << 10
                elif (pss := re.match(r"Pss:\s+(\d+)", line)) and not is_ram:
                    memory += int(pss[1])
        return kinds, memory
