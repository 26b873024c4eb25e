/// One property of a device or object type, as data: its names, its type, and the field that holds its value.
///
/// The command line, help and QMP know a type only by its table of properties. The default is the value of the field in
/// new options, so it is written in one place.
public struct Property<Options: Sendable>: Sendable {
  public let name: String
  /// Other spellings of the same property.
  public let aliases: [String]
  public let typeName: String
  public let help: String
  let assign: @Sendable (inout Options, String) throws(ValueError) -> Void
  let show: @Sendable (Options) -> String?

  public init<Value: PropertyValue>(
    _ name: String, aliases: [String] = [], _ path: any WritableKeyPath<Options, Value> & Sendable,
    _ constraint: PropertyConstraint<Value> = .any, help: String
  ) {
    self.init(name, aliases, help: help) { (options, value) throws(ValueError) in
      try constraint.check(value)
      options[keyPath: path] = value
    } show: {
      $0[keyPath: path]
    }
  }

  /// Creates a property that may stay unset.
  public init<Value: PropertyValue>(
    _ name: String, aliases: [String] = [], _ path: any WritableKeyPath<Options, Value?> & Sendable,
    _ constraint: PropertyConstraint<Value> = .any, help: String
  ) {
    self.init(name, aliases, help: help) { (options, value) throws(ValueError) in
      try constraint.check(value)
      options[keyPath: path] = value
    } show: {
      $0[keyPath: path]
    }
  }

  /// Creates a property of QEMU for which Nestling accepts only one value. Other values are refused with the reason.
  public init<Value: PropertyValue>(
    _ name: String, aliases: [String] = [], settled: Value, orAlso others: [Value] = [], because reason: String,
    help: String
  ) {
    self.init(name, aliases, help: help) { (_, value: Value) throws(ValueError) in
      guard value == settled || others.contains(value) else { throw .refused(reason: reason) }
    } show: { _ in
      settled
    }
  }

  /// Creates a property that may be given several times: each time adds a value to the list. In JSON it is an array of
  /// QEMU's type `String` (qapi/common.json): `[{"str": "a"}]`.
  public init<Value: PropertyValue>(
    _ name: String, adding path: any WritableKeyPath<Options, [Value]> & Sendable, help: String
  ) {
    self.name = name
    aliases = []
    self.help = help
    typeName = PropertyDescription.listType
    assign = { (options, text) throws(ValueError) in
      let value = try Value(text: text)
      options[keyPath: path].append(value)
    }
    show = { options in
      let values = options[keyPath: path]
      return values.isEmpty ? nil : values.map(\.text).joined(separator: " ")
    }
  }

  /// Creates a property of QEMU for which Nestling accepts no value.
  public init(_ name: String, refusedBecause reason: String) {
    self.init(name, [], help: "Not supported: " + reason) { (_, _: String) throws(ValueError) in
      throw .refused(reason: reason)
    } show: { _ in
      nil
    }
  }

  private init<Value: PropertyValue>(
    _ name: String, _ aliases: [String], help: String,
    assign: @escaping @Sendable (inout Options, Value) throws(ValueError) -> Void,
    show: @escaping @Sendable (Options) -> Value?
  ) {
    self.name = name
    self.aliases = aliases
    self.help = help
    typeName = Value.typeName
    self.assign = { (options, text) throws(ValueError) in try assign(&options, try Value(text: text)) }
    self.show = { show($0)?.text }
  }

  private init<Inner: Sendable>(
    _ inner: Property<Inner>, at path: any WritableKeyPath<Options, Inner> & Sendable, prefix: String
  ) {
    name = prefix + inner.name
    aliases = inner.aliases.map { prefix + $0 }
    help = inner.help
    typeName = inner.typeName
    let assign = inner.assign
    let show = inner.show
    self.assign = { (options, text) throws(ValueError) in try assign(&options[keyPath: path], text) }
    self.show = { show($0[keyPath: path]) }
  }

  /// Returns the same property for options that contain these options as a part.
  /// - Parameter prefix: the start of the names within the containing options.
  func within<Outer: Sendable>(
    _ path: any WritableKeyPath<Outer, Options> & Sendable, prefix: String = ""
  ) -> Property<Outer> {
    Property<Outer>(self, at: path, prefix: prefix)
  }
}

/// A condition on a value, beyond its type.
public struct PropertyConstraint<Value: PropertyValue>: Sendable {
  let check: @Sendable (Value) throws(ValueError) -> Void

  public static var any: Self { Self { (_) throws(ValueError) in } }

  public static func oneOf(_ values: [Value]) -> Self {
    Self { (value) throws(ValueError) in
      guard values.contains(value) else { throw .notOneOf(values.map(\.text)) }
    }
  }
}

extension PropertyConstraint where Value: FixedWidthInteger & UnsignedInteger {
  public static func within(_ range: ClosedRange<Value>) -> Self {
    Self { (value) throws(ValueError) in
      guard range.contains(value) else {
        throw .outOfRange(lowest: UInt64(range.lowerBound), highest: UInt64(range.upperBound))
      }
    }
  }

  public static func powerOfTwo(within range: ClosedRange<Value>) -> Self {
    Self { (value) throws(ValueError) in
      guard range.contains(value), value.nonzeroBitCount == 1 else {
        throw .notPowerOfTwo(lowest: UInt64(range.lowerBound), highest: UInt64(range.upperBound))
      }
    }
  }
}

extension PropertyConstraint where Value == ByteCount {
  public static func powerOfTwo(within range: ClosedRange<ByteCount>) -> Self {
    Self { (value) throws(ValueError) in
      guard range.contains(value), value.bytes.nonzeroBitCount == 1 else {
        throw .notPowerOfTwo(lowest: range.lowerBound.bytes, highest: range.upperBound.bytes)
      }
    }
  }
}

extension PropertyConstraint where Value == ByteCount {
  public static func atMost(_ highest: ByteCount) -> Self {
    Self { (value) throws(ValueError) in
      guard value <= highest else { throw .outOfRange(lowest: 0, highest: highest.bytes) }
    }
  }
}

extension PropertyConstraint where Value == String {
  /// - Parameter bytes: the limit of the text's length, in UTF-8.
  public static func atMost(_ bytes: Int) -> Self {
    Self { (value) throws(ValueError) in
      guard value.utf8.count <= bytes else { throw .tooLong(bytes: bytes) }
    }
  }

  public static var notEmpty: Self {
    Self { (value) throws(ValueError) in
      guard !value.isEmpty else { throw .empty }
    }
  }
}
