/// The requests of the front end that Nestling sends, by their numbers: vhost-user.rst, "Front-end message types".
public enum FrontEndRequest: UInt32, Sendable, CaseIterable {
  case getFeatures = 1
  case setFeatures = 2
  case setOwner = 3
  case setMemTable = 5
  case setVringNum = 8
  case setVringAddr = 9
  case setVringBase = 10
  case getVringBase = 11
  case setVringKick = 12
  case setVringCall = 13
  case getProtocolFeatures = 15
  case setProtocolFeatures = 16
  case getQueueNum = 17
  case setVringEnable = 18
  case setBackendReqFD = 21
  case iotlbMessage = 22
  case getConfig = 24
  case setConfig = 25
  case getInflightFD = 31
  case setInflightFD = 32
  case resetDevice = 34
  case setStatus = 39
  case getStatus = 40

  /// The name in the specification.
  public var name: String {
    switch self {
    case .getFeatures: "VHOST_USER_GET_FEATURES"
    case .setFeatures: "VHOST_USER_SET_FEATURES"
    case .setOwner: "VHOST_USER_SET_OWNER"
    case .setMemTable: "VHOST_USER_SET_MEM_TABLE"
    case .setVringNum: "VHOST_USER_SET_VRING_NUM"
    case .setVringAddr: "VHOST_USER_SET_VRING_ADDR"
    case .setVringBase: "VHOST_USER_SET_VRING_BASE"
    case .getVringBase: "VHOST_USER_GET_VRING_BASE"
    case .setVringKick: "VHOST_USER_SET_VRING_KICK"
    case .setVringCall: "VHOST_USER_SET_VRING_CALL"
    case .getProtocolFeatures: "VHOST_USER_GET_PROTOCOL_FEATURES"
    case .setProtocolFeatures: "VHOST_USER_SET_PROTOCOL_FEATURES"
    case .getQueueNum: "VHOST_USER_GET_QUEUE_NUM"
    case .setVringEnable: "VHOST_USER_SET_VRING_ENABLE"
    case .setBackendReqFD: "VHOST_USER_SET_BACKEND_REQ_FD"
    case .iotlbMessage: "VHOST_USER_IOTLB_MSG"
    case .getConfig: "VHOST_USER_GET_CONFIG"
    case .setConfig: "VHOST_USER_SET_CONFIG"
    case .getInflightFD: "VHOST_USER_GET_INFLIGHT_FD"
    case .setInflightFD: "VHOST_USER_SET_INFLIGHT_FD"
    case .resetDevice: "VHOST_USER_RESET_DEVICE"
    case .setStatus: "VHOST_USER_SET_STATUS"
    case .getStatus: "VHOST_USER_GET_STATUS"
    }
  }
}

/// The requests of the back end that Nestling carries out: vhost-user.rst, "Back-end message types".
enum BackEndRequest: UInt32, Sendable {
  /// VHOST_USER_BACKEND_IOTLB_MSG
  case iotlbMessage = 1
  /// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG
  case configurationChange = 2
}

/// VHOST_USER_PROTOCOL_F_*: vhost-user.rst, "Protocol features". Only those that Nestling understands have a name.
public struct ProtocolFeatures: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// MQ: the back end reports how many queues it has.
  public static let multiqueue = ProtocolFeatures(rawValue: 1 << 0)
  /// REPLY_ACK
  public static let replyAcknowledgement = ProtocolFeatures(rawValue: 1 << 3)
  /// BACKEND_REQ: the back end gets a channel for its requests.
  public static let backEndRequests = ProtocolFeatures(rawValue: 1 << 5)
  /// CONFIG: the device configuration is the back end's.
  public static let configuration = ProtocolFeatures(rawValue: 1 << 9)
  /// INFLIGHT_SHMFD
  public static let inflight = ProtocolFeatures(rawValue: 1 << 12)
  /// RESET_DEVICE
  public static let resetDevice = ProtocolFeatures(rawValue: 1 << 13)
  /// STATUS
  public static let status = ProtocolFeatures(rawValue: 1 << 16)

  /// The names in the specification, without their common prefix.
  public var names: [String] {
    let all: [(ProtocolFeatures, String)] = [
      (.multiqueue, "MQ"), (.replyAcknowledgement, "REPLY_ACK"), (.backEndRequests, "BACKEND_REQ"),
      (.configuration, "CONFIG"), (.inflight, "INFLIGHT_SHMFD"), (.resetDevice, "RESET_DEVICE"), (.status, "STATUS"),
    ]
    return all.filter { contains($0.0) }.map(\.1)
  }
}

/// Bits of the features that the protocol itself uses.
enum FeatureBits {
  /// VHOST_USER_F_PROTOCOL_FEATURES: a bit that virtio drivers never see.
  static let protocolFeatures: UInt64 = 1 << 30
  /// VIRTIO_F_VERSION_1
  static let version1: UInt64 = 1 << 32
  /// VIRTIO_F_ACCESS_PLATFORM
  static let accessPlatform: UInt64 = 1 << 33
}
