// edu behind a VT-d unit, tested with libqtest and libqos's PCI layer. libqos finds the device and places its BAR. The
// device's DMA uses a second-stage table of legacy mode, an unmapped address is a fault, and MSI writes to memory.

#include "qemu/osdep.h"
#include "libqtest.h"
#include "libqos/pci-pc.h"
#include "libqos/pci.h"
#include "hw/pci/pci_regs.h"

enum { UNIT = 0xfed90000, DEVICE = 4 };

// Addresses in RAM.
enum {
  ROOT = 0x100000,
  CONTEXT = 0x101000,
  TABLE = 0x102000,  // and two more pages
  PAGE = 0x200000,
  MESSAGE = 0x201000,
};
static const uint64_t ADDRESS = 1ull << 30 | 2 << 21 | 3 << 12;

typedef struct {
  QTestState *machine;
  QPCIBus *bus;
  QPCIDevice *edu;
  QPCIBar bar;
} Board;

static Board start(void) {
  Board board = {.machine = qtest_init("-M q35 -nodefaults -device intel-iommu,aw-bits=39 "
                                       "-device edu,addr=4,dma_mask=0xffffffffffffffff")};
  board.bus = qpci_new_pc(board.machine, NULL);
  board.edu = qpci_device_find(board.bus, QPCI_DEVFN(DEVICE, 0));
  g_assert_nonnull(board.edu);
  g_assert_cmphex(qpci_config_readw(board.edu, PCI_VENDOR_ID), ==, 0x1234);
  g_assert_cmphex(qpci_config_readw(board.edu, PCI_DEVICE_ID), ==, 0x11e8);
  g_assert_cmphex(qpci_config_readw(board.edu, PCI_COMMAND) & 7, ==, 0);
  qpci_device_enable(board.edu);
  uint64_t size;
  board.bar = qpci_iomap(board.edu, 0, &size);
  g_assert_cmphex(size, ==, 1 << 20);
  g_assert_cmphex(qpci_io_readl(board.edu, board.bar, 0), ==, 0x010000ed);
  return board;
}

static void end(Board *board) {
  g_free(board->edu);
  qpci_free_pc(board->bus);
  qtest_quit(board->machine);
}

// Writes root, context with a 3-level table in domain 7, and one read-write page; then sets SRTP and TE.
static void translate(QTestState *machine) {
  qtest_writeq(machine, ROOT, CONTEXT | 1);
  qtest_writeq(machine, CONTEXT + (DEVICE << 3) * 16, TABLE | 1);
  qtest_writeq(machine, CONTEXT + (DEVICE << 3) * 16 + 8, 7 << 8 | 1);
  qtest_writeq(machine, TABLE + 8 * 1, (TABLE + 0x1000) | 3);
  qtest_writeq(machine, TABLE + 0x1000 + 8 * 2, (TABLE + 0x2000) | 3);
  qtest_writeq(machine, TABLE + 0x2000 + 8 * 3, PAGE | 3);
  qtest_writeq(machine, UNIT + 0x20, ROOT);
  qtest_writel(machine, UNIT + 0x18, 1u << 30);
  g_assert_cmphex(qtest_readl(machine, UNIT + 0x1c), ==, 1u << 30);
  qtest_writel(machine, UNIT + 0x18, 1u << 31);
  g_assert_cmphex(qtest_readl(machine, UNIT + 0x1c), ==, 3u << 30);
}

// Moves bytes between the device's buffer and memory. QEMU's edu takes 100 ms of virtual time; ours finishes at once.
static void transfer(Board *board, uint64_t address, uint64_t count, bool to_memory, bool interrupts) {
  qpci_io_writeq(board->edu, board->bar, 0x80, to_memory ? 0x40000 : address);
  qpci_io_writeq(board->edu, board->bar, 0x88, to_memory ? address : 0x40000);
  qpci_io_writeq(board->edu, board->bar, 0x90, count);
  qpci_io_writeq(board->edu, board->bar, 0x98, 1 | (to_memory ? 2 : 0) | (interrupts ? 4 : 0));
  for (int tries = 0; qpci_io_readq(board->edu, board->bar, 0x98) & 1; tries++) {
    g_assert_cmpint(tries, <, 10000);
    qtest_clock_step(board->machine, 1000000);
  }
}

static void registers(void) {
  Board board = start();
  qpci_io_writel(board.edu, board.bar, 4, 0x12345678);
  g_assert_cmphex(qpci_io_readl(board.edu, board.bar, 4), ==, ~0x12345678u);
  // GSI 16 + (device + pin) & 7.
  int pin = 16 + DEVICE;
  qtest_irq_intercept_in(board.machine, "ioapic");
  qpci_io_writel(board.edu, board.bar, 0x60, 1);
  g_assert_true(qtest_get_irq(board.machine, pin));
  qpci_io_writel(board.edu, board.bar, 0x64, 1);
  g_assert_false(qtest_get_irq(board.machine, pin));
  end(&board);
}

static void dma(void) {
  Board board = start();
  uint8_t sent[64], found[64];
  for (int i = 0; i < 64; i++) {
    sent[i] = i * 7;
  }
  translate(board.machine);
  qtest_memwrite(board.machine, PAGE, sent, 64);
  transfer(&board, ADDRESS, 64, false, false);
  transfer(&board, ADDRESS + 0x400, 64, true, false);
  qtest_memread(board.machine, PAGE + 0x400, found, 64);
  g_assert_cmpmem(sent, 64, found, 64);
  g_assert_cmphex(qtest_readl(board.machine, UNIT + 0x34), ==, 0);
  end(&board);
}

static void fault(void) {
  Board board = start();
  translate(board.machine);
  qtest_bufwrite(board.machine, PAGE, "untouched", 9);
  transfer(&board, ADDRESS + 0x1000, 8, true, false);
  g_assert_cmphex(qtest_readl(board.machine, UNIT + 0x34) & 2, ==, 2);
  uint64_t record = UNIT + (qtest_readq(board.machine, UNIT + 8) >> 24 & 0x3ff) * 16;
  g_assert_cmphex(qtest_readq(board.machine, record), ==, ADDRESS + 0x1000);
  // F; a write; reason 5 (write permission); the source.
  g_assert_cmphex(qtest_readq(board.machine, record + 8) & ~(1ull << 62), ==, 1ull << 63 | 5ull << 32 | DEVICE << 3);
  char found[9];
  qtest_bufread(board.machine, PAGE, found, 9);
  g_assert_cmpmem(found, 9, "untouched", 9);
  end(&board);
}

static void message(void) {
  Board board = start();
  uint8_t at = qpci_find_capability(board.edu, PCI_CAP_ID_MSI, 0);
  g_assert_cmpint(at, !=, 0);
  qpci_config_writel(board.edu, at + PCI_MSI_ADDRESS_LO, MESSAGE);
  qpci_config_writel(board.edu, at + PCI_MSI_ADDRESS_HI, 0);
  qpci_config_writew(board.edu, at + PCI_MSI_DATA_64, 0x4321);
  qpci_config_writew(board.edu, at + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE);
  qtest_writel(board.machine, MESSAGE, 0);
  transfer(&board, PAGE, 8, true, true);
  for (int tries = 0; qtest_readl(board.machine, MESSAGE) != 0x4321; tries++) {
    g_assert_cmpint(tries, <, 10000);
    qtest_clock_step(board.machine, 1000000);
  }
  end(&board);
}

int main(int count, char **arguments) {
  g_test_init(&count, &arguments, NULL);
  qtest_add_func("/edu/registers", registers);
  qtest_add_func("/edu/dma", dma);
  qtest_add_func("/edu/fault", fault);
  qtest_add_func("/edu/message", message);
  return g_test_run();
}
