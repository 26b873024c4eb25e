import Linux
import VFIO

/// An open file that an option names: by the number of an inherited descriptor, or by the name under which a monitor's
/// client has passed it (`getfd`).
public struct DescriptorReference: PropertyValue {
  public let text: String
  /// The file with this name; nil if no monitor has one.
  public var file: PassedDescriptor?

  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    if text.isEmpty { throw .empty }
    self.text = text
  }

  /// The number of an inherited descriptor; nil for a name.
  public var number: Int32? {
    guard let number = NumberText.unsigned(text.utf8) else { return nil }
    return Int32(exactly: number)
  }
}

/// A device or object type whose `fd` names an open file.
public protocol DescriptorTaking: QOMOptions {
  var file: DescriptorReference? { get set }
}

extension DescriptorTaking {
  /// The value of `fd`, a descriptor's number or an unknown name; nil if a monitor's client has passed the file.
  public var descriptor: String? { file?.file == nil ? file?.text : nil }

  static func descriptorProperty(help: String) -> Property<Self> {
    Property("fd", \.file, help: help + ": the number of an inherited descriptor, or a name in the monitor (getfd)")
  }
}

extension DescriptorReference {
  /// Returns the open file, whose system calls go through `calls`.
  /// - Returns: nil for an unknown name. Such options are refused earlier.
  func kernelFile(calls: any SystemCalls) -> KernelFile? {
    if let file { return KernelFile(sharing: file, calls: calls) }
    return number.map { KernelFile(owning: $0, calls: calls) }
  }
}
