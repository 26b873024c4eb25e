"""network_machine: a virtual machine with network cards, and the host's side of their network.
  host = network_machine.Host("/tmp/scratch")
  guest = network_machine.Guest(vmm, "/tmp/scratch", [tap(0)], [address(0)]); guest.machine.ready()

Tests/lab/network, Tests/lab/vhost-user, Tests/lab/testpmd and Tests/compare-network use this module. `enter` brings the
script to a place where it may create interfaces. The guest runs the scenario `network` of Images/guest/init; both sides
run Images/guest/traffic.c.

Environment:
  KERNEL, INITRD  the guest's images (built with Images/kernel and Images/initramfs)
  TRAFFIC         the program of Images/guest/traffic.c for this machine (compiled)
"""
import hashlib, os, re, subprocess, sys, time

import hotplug_machine
from hotplug_machine import Failure, Machine

port = "5001"  # of `traffic serve`, on each side


def enter(seconds):
    """Returns only in the lab or on a machine that runs KVM guests, and only in a separate network namespace. Otherwise
    it replaces this process with the same command there."""
    if "TRAFFIC" not in os.environ:
        images = hotplug_machine.images
        os.environ["TRAFFIC"] = subprocess.run(["bash", "-c", '. "$0/common"; program "$0/guest/traffic.c"', images],
                                               stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    hotplug_machine.enter_lab(seconds)
    if "NETWORK_OF_ITS_OWN" not in os.environ:
        os.environ["NETWORK_OF_ITS_OWN"] = "yes"
        words = [] if os.geteuid() == 0 else ["--map-root-user"]
        os.execvp("unshare", ["unshare", "--net", *words, sys.executable, *sys.argv])


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class Host:
    """This machine's side: the interfaces, and a server for the guest's `traffic`."""

    def __init__(self, scratch):
        ip("link", "set", "lo", "up")
        # The guest's interfaces 0 to 2 are attached to these: 10.0.N.1 is the host's address, 10.0.N.2 the guest's.
        for number, words in enumerate(((), (), ("multi_queue",))):
            ip("tuntap", "add", "dev", f"tap{number}", "mode", "tap", *words)
            ip("addr", "add", f"10.0.{number}.1/24", "dev", f"tap{number}")
            ip("link", "set", f"tap{number}", "up")
        # passt copies the address and the route of the interface that leads outside.
        ip("link", "add", "outside", "type", "veth", "peer", "name", "inside")
        ip("addr", "add", "192.0.2.2/24", "dev", "inside")
        ip("link", "set", "outside", "up")
        ip("link", "set", "inside", "up")
        ip("route", "add", "default", "via", "192.0.2.1", "dev", "inside")
        self.path = os.path.join(scratch, "served")
        self.serve()

    def serve(self):
        with open(self.path, "wb") as output:
            self.server = subprocess.Popen([os.environ["TRAFFIC"], "serve", port], stdout=output)
        self.output = open(self.path, encoding="utf-8")
        text = ""

        def has_begun():
            nonlocal text
            text += self.output.read()
            return "\n" in text
        wait_until(has_begun, 120, "the host's server")
        if text.startswith("FAIL"):
            raise Failure(f"on the host: {text.strip()}")

    def errors(self):
        """Returns the errors of the host's server since the last call."""
        return [line for line in self.output.read().splitlines() if line.startswith("FAIL")]

    def run(self, *words):
        """Runs `traffic` on the host, and returns its output."""
        done = subprocess.run([os.environ["TRAFFIC"], *words], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode or "FAIL" in done.stdout:
            raise Failure(f"on the host: {' '.join(words)}: {done.stdout.strip()}")
        return done.stdout

    def stop(self):
        self.server.kill()
        self.server.wait()
        self.output.close()


class Guest:
    """A machine with one card for each element of `netdevs`."""
    running = []  # the machines that have not ended

    def __init__(self, vmm, scratch, netdevs, addresses, mode="none", words="", ports=0, properties=(), name="guest",
                 options=(), initrd=None):
        folder = os.path.join(scratch, name)
        os.makedirs(folder, exist_ok=True)
        self.mode = mode
        more = list(options)
        for number, netdev in enumerate(netdevs):
            more += ["-netdev", f"{netdev},id=n{number}", "-device", f"virtio-net-pci,id=d{number},netdev=n{number},"
                     f"mac={mac(number, name)},disable-legacy=on{',iommu_platform=on' * (mode != 'none')}"
                     f"{properties[number] if properties else ''}"]
        self.machine = Machine(vmm, folder, iommu=mode, ports=ports, run="network",
                               words=f"nestling.address={','.join(addresses)} {words}", options=more, initrd=initrd)
        self.running.append(self)

    def run(self, command, limit=120, wrong=True):
        """Runs a shell command in the guest, and returns the lines that it printed."""
        since = len(self.machine.lines)
        self.machine.guest(command)
        _, status = self.machine.wait_line(rf"^guest: status (\d+) of {re.escape(command)}$", limit, since)
        lines = [line for _, line in self.machine.lines[since:]]
        bad = [line for line in lines if "guest: FAIL" in line]
        if bad or (wrong and status[1] != "0"):
            raise Failure(f"in the guest: {command}: {bad[0] if bad else 'status ' + status[1]}")
        return "".join(f"{line}\n" for line in lines)

    def wait_for(self, command, line, limit=120):
        """Repeats a shell command in the guest until it prints this line."""
        end = time.monotonic() + limit
        while line not in self.run(command, wrong=False).splitlines():
            if time.monotonic() > end:
                raise Failure(f"in the guest: {command} did not print {line} within {limit} s")
            time.sleep(0.1)

    def serve(self):
        """Starts the server in the guest."""
        since = len(self.machine.lines)
        self.run(f"traffic serve {port} &")
        self.machine.wait_line(f"^guest: serving {port}", 120, since)

    def kill(self):
        self.running.remove(self)
        self.machine.kill()

    def ends_well(self):
        self.running.remove(self)
        wrong = self.machine.end()
        if wrong:
            raise Failure("; ".join(wrong[:5]))


def mac(number, name):
    return f"52:54:00:00:{hashlib.sha256(name.encode()).hexdigest()[:2]}:{number:02x}"


def tap(number, words="vhost=off"):
    """Returns the argument of -netdev, without an id, for an interface of the host."""
    return f"tap,ifname=tap{number},script=no,downscript=no,{words}"


def address(number):
    """Returns the address of the guest's card that is attached to interface `number`."""
    return f"10.0.{number}.2/24"


def figures(text):
    """Returns the figures in lines of `traffic`, in short."""
    found = []
    for line in text.splitlines():
        if match := re.search(r"(sent|received) .*, ([\d.]+) MB/s", line):
            found.append(f"{match[1]} {match[2]} MB/s")
        elif match := re.search(r"(ping|echo) .* ([\d.]+) median", line):
            found.append(f"{match[1]} {match[2]} ms")
    return ", ".join(found)


def lost_none(text, count):
    if text.count(f": {count} sent, 0 lost,") != 1:
        raise Failure(f"packets were lost: {text.strip()}")
    return text


def wait_until(condition, limit, what):
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise Failure(f"waited {limit} s in vain for {what}")
        time.sleep(0.05)
