// The unit's registers are written in any way, with writes to guest memory and devices' requests in between.

extension FuzzTarget {
  static let registers = FuzzTarget("registers") { input throws(Finding) in
    let subject = try UnitUnderTest(&input)
    var doorbells = 0
    while !input.isEmpty, doorbells < 200 {
      switch input.choice(16) {
      case 0..<6:
        doorbells += 1
        try subject.writeRegister(&input)
      case 6:
        let width = input.width()
        let value = subject.unit.read(offset: UInt64(input.word()), width: width)
        try Finding.unless(value <= width.allOnes, "\(value) read as \(width)")
      case 7..<10: subject.writeMemory(&input)
      case 10..<13: try subject.access(&input)
      case 13: subject.interrupt(&input)
      case 14: subject.changeFunction(&input)
      default: if input.choice(8) == 0 { subject.unit.reset() }
      }
    }
    try subject.checkReset()
  }
}
