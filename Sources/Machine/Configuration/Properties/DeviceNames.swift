/// Ids or addresses of devices, joined by `+`, because a comma would end the property.
public struct DeviceNames: PropertyValue {
  /// At least one.
  public let names: [String]

  public static var typeName: String { "list" }

  public init(text: String) throws(ValueError) {
    names = text.split(separator: "+", omittingEmptySubsequences: false).map(String.init)
    if names.contains("") { throw .empty }
  }

  public var text: String { names.joined(separator: "+") }
}
