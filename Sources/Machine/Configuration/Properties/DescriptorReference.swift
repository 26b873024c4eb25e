import Linux
import VFIO

/// An open file that an option names: by the number of a descriptor that Nestling has inherited, or by the name under
/// which a monitor's client has handed it over (`getfd`).
public struct DescriptorReference: PropertyValue {
  public let text: String
  /// What the name stands for; nil where no monitor has it.
  public var file: PassedDescriptor?

  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    if text.isEmpty { throw .empty }
    self.text = text
  }

  /// Of an inherited descriptor; nil for a name.
  public var number: Int32? {
    guard let number = NumberText.unsigned(text.utf8) else { return nil }
    return Int32(exactly: number)
  }
}

/// A kind of device or object whose `fd` names an open file.
public protocol DescriptorTaking: QOMOptions {
  var file: DescriptorReference? { get set }
}

extension DescriptorTaking {
  /// What no monitor has handed over: a number, or a name that none knows.
  public var descriptor: String? { file?.file == nil ? file?.text : nil }

  static func descriptorProperty(help: String) -> Property<Self> {
    Property("fd", \.file, help: help + ": the number of an inherited descriptor, or a name in the monitor (getfd)")
  }
}

extension DescriptorReference {
  /// - Returns: nil for a name that stands for nothing: options with one are refused before.
  func kernelFile(calls: any SystemCalls) -> KernelFile? {
    if let file { return KernelFile(sharing: file, calls: calls) }
    return number.map { KernelFile(owning: $0, calls: calls) }
  }
}
