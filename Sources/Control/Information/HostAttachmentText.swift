import Machine
import VTd

/// Describes in one line which host page tables translate for a passed-through function.
enum HostAttachmentText {
  static func line(_ attachment: HostAttachment) -> String {
    let owner = attachment.iommufd.map { ", \($0)" } ?? ""
    func space(_ id: UInt32?) -> String { (id.map { " over IOAS \($0)" } ?? "") + owner }
    switch attachment.target {
    case .none: return "nothing: \(reason(attachment.binding))"
    case .addressSpace(let id): return "the page table of IOAS \(id)\(owner)"
    case .parent(let id, let under): return "second stage, HWPT \(id)\(space(under))"
    case .nested(let id, let parent, let under):
      var stage = ""
      if case .firstStage(let table) = attachment.binding {
        stage = ", \(table.levels) levels at \(NumberFormat.hexadecimal(table.root))"
      }
      return "nested, HWPT \(id)\(stage), on second stage, HWPT \(parent)\(space(under))"
    }
  }

  private static func reason(_ binding: HostBinding?) -> String {
    guard case .blocked(let reason) = binding else { return "its requests are refused" }
    switch reason {
    case .entry(let fault): return FaultText.line(fault)
    case .guestSecondStage: return "the guest uses second-stage tables"
    case .supervisorRequests: return "the guest asks for supervisor requests"
    case .refused: return "the host refused what the guest's tables ask for"
    }
  }
}
