// Hotplug of virtio devices below a root port, tested with libqtest and libqos's PCI layer, by ACPI and native PCIe.
// QEMU's virtio-blk-test and virtio-rng-test do the same on `pc`, where the root bus itself supports hotplug.

#include "qemu/osdep.h"
#include "libqtest.h"
#include "libqos/pci-pc.h"
#include "libqos/pci.h"
#include "hw/pci/pci_regs.h"

enum { PORT = 4, BUS = 1, ROUNDS = 3 };

// The ACPI hotplug controller's registers, at the addresses of QEMU's q35 (docs/specs/acpi_pci_hotplug.rst).
enum { UP = 0xcc0, DOWN = 0xcc4, EJECT = 0xcc8, SELECT = 0xcd0 };

typedef struct {
  const char *driver, *drive;
  uint16_t identity;
} Kind;

static const Kind disk = {"virtio-blk-pci", "drive1", 0x1042};
static const Kind entropy = {"virtio-rng-pci", NULL, 0x1044};

typedef struct {
  QTestState *machine;
  QPCIBus *bus;
  QPCIDevice *port;
  uint8_t express;
} Board;

// Does what firmware does: the port leads to bus 1 and forwards the range in which libqos places BARs.
static Board start(const char *way) {
  Board board = {.machine = qtest_initf("-M q35 -nodefaults -device pcie-root-port,id=p1,addr=4 "
                                        "-drive if=none,id=drive1,file=disk.img,format=raw %s",
                                        way)};
  board.bus = qpci_new_pc(board.machine, NULL);
  board.port = qpci_device_find(board.bus, QPCI_DEVFN(PORT, 0));
  g_assert_nonnull(board.port);
  qpci_config_writel(board.port, PCI_PRIMARY_BUS, BUS << 16 | BUS << 8);
  qpci_config_writel(board.port, PCI_MEMORY_BASE, 0xeff0e000);
  qpci_config_writew(board.port, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  board.express = qpci_find_capability(board.port, PCI_CAP_ID_EXP, 0);
  g_assert_cmpint(board.express, !=, 0);
  return board;
}

static void end(Board *board) {
  g_free(board->port);
  qpci_free_pc(board->bus);
  qtest_quit(board->machine);
}

static QPCIDevice *find(Board *board) { return qpci_device_find(board->bus, BUS << 8); }

static void check_empty(Board *board) { g_assert_null(find(board)); }

// Checks that the device is there and that a driver can access it.
static void check_device(Board *board, const Kind *kind) {
  QPCIDevice *device = find(board);
  g_assert_nonnull(device);
  g_assert_cmphex(qpci_config_readw(device, PCI_VENDOR_ID), ==, 0x1af4);
  g_assert_cmphex(qpci_config_readw(device, PCI_DEVICE_ID), ==, kind->identity);
  qpci_device_enable(device);
  QPCIBar bar = qpci_iomap(device, 4, NULL);
  // Device status: ACKNOWLEDGE, DRIVER.
  g_assert_cmphex(qpci_io_readb(device, bar, 0x14), ==, 0);
  qpci_io_writeb(device, bar, 0x14, 3);
  g_assert_cmphex(qpci_io_readb(device, bar, 0x14), ==, 3);
  g_free(device);
}

static void add(Board *board, const Kind *kind) {
  if (kind->drive) {
    qtest_qmp_device_add(board->machine, kind->driver, "hot", "{'bus': 'p1', 'drive': %s}", kind->drive);
  } else {
    qtest_qmp_device_add(board->machine, kind->driver, "hot", "{'bus': 'p1'}");
  }
}

static void acpi(const void *data) {
  const Kind *kind = data;
  Board board = start("");
  qtest_outl(board.machine, SELECT, 0);
  for (int round = 0; round < ROUNDS; round++) {
    check_empty(&board);
    add(&board, kind);
    g_assert_cmphex(qtest_inl(board.machine, UP), ==, 1);
    g_assert_cmphex(qtest_inl(board.machine, UP), ==, 0);
    check_device(&board, kind);
    qtest_qmp_device_del_send(board.machine, "hot");
    g_assert_cmphex(qtest_inl(board.machine, DOWN), ==, 1);
    qtest_outl(board.machine, EJECT, 1);
    qtest_qmp_eventwait(board.machine, "DEVICE_DELETED");
  }
  check_empty(&board);
  end(&board);
}

static uint16_t events(Board *board) {
  uint16_t status = qpci_config_readw(board->port, board->express + PCI_EXP_SLTSTA);
  qpci_config_writew(board->port, board->express + PCI_EXP_SLTSTA, status);
  return status;
}

static void control(Board *board, uint16_t value) {
  qpci_config_writew(board->port, board->express + PCI_EXP_SLTCTL, value);
  // The command must be complete before the next step.
  g_assert_cmphex(events(board) & PCI_EXP_SLTSTA_CC, ==, PCI_EXP_SLTSTA_CC);
}

static void native(const void *data) {
  const Kind *kind = data;
  Board board = start("-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off");
  for (int round = 0; round < ROUNDS; round++) {
    check_empty(&board);
    events(&board);
    add(&board, kind);
    uint16_t came = PCI_EXP_SLTSTA_PDC | PCI_EXP_SLTSTA_PDS;
    g_assert_cmphex(events(&board) & (came | PCI_EXP_SLTSTA_ABP), ==, came);
    control(&board, PCI_EXP_SLTCTL_PWR_IND_BLINK | PCI_EXP_SLTCTL_PWR_ON);
    control(&board, PCI_EXP_SLTCTL_PWR_IND_ON | PCI_EXP_SLTCTL_PWR_ON);
    check_device(&board, kind);
    events(&board);
    qtest_qmp_device_del_send(board.machine, "hot");
    g_assert_cmphex(events(&board) & (PCI_EXP_SLTSTA_ABP | PCI_EXP_SLTSTA_PDS), ==,
                    PCI_EXP_SLTSTA_ABP | PCI_EXP_SLTSTA_PDS);
    control(&board, PCI_EXP_SLTCTL_PWR_IND_BLINK | PCI_EXP_SLTCTL_PWR_ON);
    control(&board, PCI_EXP_SLTCTL_PWR_IND_BLINK | PCI_EXP_SLTCTL_PWR_OFF);
    control(&board, PCI_EXP_SLTCTL_PWR_IND_OFF | PCI_EXP_SLTCTL_PWR_OFF);
    qtest_qmp_eventwait(board.machine, "DEVICE_DELETED");
    g_assert_cmphex(events(&board) & PCI_EXP_SLTSTA_PDS, ==, 0);
  }
  end(&board);
}

int main(int count, char **arguments) {
  g_test_init(&count, &arguments, NULL);
  qtest_add_data_func("/hotplug/virtio-blk-acpi", &disk, acpi);
  qtest_add_data_func("/hotplug/virtio-blk-native", &disk, native);
  qtest_add_data_func("/hotplug/virtio-rng-acpi", &entropy, acpi);
  qtest_add_data_func("/hotplug/virtio-rng-native", &entropy, native);
  return g_test_run();
}
