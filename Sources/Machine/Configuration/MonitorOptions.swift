/// A monitor (`-mon`): its character device and its protocol.
public struct MonitorOptions: TypedOptions, Hashable {
  public var id: Identifier?
  public var device: Identifier?
  public var mode = Mode.readline
  /// Whether answers are indented on several lines. Valid only with mode `control`.
  public var pretty = false

  public enum Mode: String, ChoiceValue {
    /// The human monitor (HMP).
    case readline
    /// QMP.
    case control
  }

  public init() {}

  public static let properties: [Property<Self>] = [
    Property("id", \.id, help: "Name of the monitor"),
    Property("chardev", \.device, help: "ID of its character device"),
    Property("mode", \.mode, help: "readline for the human monitor, control for QMP"),
    Property("pretty", \.pretty, help: "Answers on several lines, with mode=control"),
  ]

  // monitor_init (monitor/monitor.c).
  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "Parameter 'chardev' is missing") { $0.device != nil },
    PropertyRule(otherwise: "'pretty' is not compatible with HMP monitors") { $0.mode == .control || !$0.pretty },
  ]
}
