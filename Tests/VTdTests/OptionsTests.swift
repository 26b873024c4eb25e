import Testing

@testable import VTd

@Suite("options of the remapping unit")
struct OptionsTests {
  static func options(_ change: (inout UnitOptions) -> Void) -> UnitOptions {
    var options = UnitOptions()
    change(&options)
    return options
  }

  func error(_ change: (inout UnitOptions) -> Void) -> UnitOptionError? {
    do throws(UnitOptionError) {
      try Self.options(change).validate()
      return nil
    } catch {
      return error
    }
  }

  @Test("consistent options are accepted")
  func accepted() {
    #expect(error { _ in } == nil)
    #expect(error { $0.scalableMode = true } == nil)
    #expect(
      error {
        $0.scalableMode = true
        $0.firstStage = true
        $0.nested = true
        $0.addressWidth = 57
      } == nil)
    #expect(error { $0.addressWidth = 39 } == nil)
    #expect(
      error {
        $0.deviceIOTLB = true
        $0.ignoresTransientMapping = true
      } == nil)
  }

  @Test("first stage without scalable mode is refused under QEMU's name x-flts")
  func firstStageAlone() {
    let error = error { $0.firstStage = true }
    #expect(error?.option == "x-flts")
    #expect(error?.problem == .needsScalableMode)
  }

  @Test("each contradiction names its option")
  func contradictions() {
    #expect(error { $0.nested = true }?.option == "x-nested")
    #expect(
      error {
        $0.nested = true
        $0.scalableMode = true
      }?.option == "x-nested")
    #expect(error { $0.addressWidth = 40 }?.option == "aw-bits")
    #expect(
      error {
        $0.addressWidth = 39
        $0.scalableMode = true
        $0.firstStage = true
      }?.option == "aw-bits")
    #expect(
      error {
        $0.extendedInterruptMode = true
        $0.interruptRemapping = false
      }?.option == "eim")
    #expect(
      error {
        $0.scalableMode = true
        $0.dmaDrain = false
      }?.option == "dma-drain")
    #expect(error { $0.pasidBits = 8 }?.option == "pasid-bits")
    #expect(
      error {
        $0.scalableMode = true
        $0.pasidBits = 21
      }?.option == "pasid-bits")
    #expect(error { $0.ignoresTransientMapping = true }?.option == "stale-tm")
    #expect(
      error {
        $0.scalableMode = true
        $0.firstStage = true
        $0.dmaTranslation = false
      }?.option == "dma-translation")
  }

  @Test("svm needs device-iotlb, a first stage and PASIDs")
  func pageRequests() {
    var options = UnitOptions()
    options.scalableMode = true
    options.svm = true
    func problem() -> UnitOptionError.Problem? {
      do throws(UnitOptionError) {
        try options.validate()
        return nil
      } catch {
        #expect(error.option == "svm")
        return error.problem
      }
    }
    #expect(problem() == .needsDeviceIOTLB)
    options.deviceIOTLB = true
    #expect(problem() == .needsFirstStage)
    options.firstStage = true
    #expect(problem() == .needsPASIDs)
    options.pasidBits = 8
    #expect(problem() == nil)
  }

  /// Linux under QEMU prints the first two pairs of values.
  @Test(
    "each set of options gives these capability registers, bit for bit",
    arguments: [
      (
        OptionsTests.options {
          $0.cachingMode = true; $0.deviceIOTLB = true
        }, 0xd2_008c_222f_0686, 0xf0_0f5e
      ),
      (OptionsTests.options { _ in }, 0xd2_008c_222f_0606, 0xf0_0f5a),
      (
        OptionsTests.options {
          $0.addressWidth = 39; $0.interruptRemapping = false
        }, 0xd2_008c_2226_0206,
        0xf42
      ),
      (OptionsTests.options { $0.extendedInterruptMode = false }, 0xd2_008c_222f_0606, 0xf0_0f4a),
      (
        OptionsTests.options {
          $0.dmaTranslation = false; $0.dmaDrain = false
        }, 0x12_008c_222f_0006, 0xf0_0f5a
      ),
      (
        OptionsTests.options {
          $0.scalableMode = true; $0.snoopControl = true
        }, 0xd2_008c_222f_0606,
        0x4800_80f0_0fda
      ),
      (
        OptionsTests.options {
          $0.scalableMode = true; $0.firstStage = true
        }, 0x1d2_008c_222f_0606,
        0x8800_00f0_0f5a
      ),
      (
        OptionsTests.options {
          $0.scalableMode = true
          $0.firstStage = true
          $0.fs1gp = false
          $0.pasidBits = 20
        }, 0xd2_008c_222f_0606, 0x8998_00f0_0f5a
      ),
      (
        OptionsTests.options {
          $0.scalableMode = true
          $0.firstStage = true
          $0.nested = true
        }, 0x1d2_008c_222f_0606, 0x23_e804_84f0_0f5b
      ),
      (
        OptionsTests.options {
          $0.scalableMode = true
          $0.firstStage = true
          $0.deviceIOTLB = true
          $0.pasidBits = 20
          $0.svm = true
        }, 0x1d2_008c_222f_0606, 0x1_8d9a_20f0_0f5e
      ),
      (
        OptionsTests.options {
          $0.scalableMode = true
          $0.firstStage = true
          $0.addressWidth = 57
        }, 0x11d2_008c_2238_0e06, 0x8800_00f0_0f5a
      ),
    ] as [(UnitOptions, UInt64, UInt64)])
  func golden(options: UnitOptions, capability: UInt64, extended: UInt64) throws {
    try options.validate()
    let capabilities = Capabilities(options)
    #expect(capabilities.capability == capability, "\(String(capabilities.capability, radix: 16))")
    #expect(capabilities.extended == extended, "\(String(capabilities.extended, radix: 16))")
  }
}
