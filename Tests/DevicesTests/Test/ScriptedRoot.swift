import Hardware
import Synchronization
import TestSupport

/// A root complex with translation services. The test sets its pages, and it records the requests.
final class ScriptedRoot: DMARemapper {
  struct Page: Hashable, Sendable {
    var address: UInt64
    var rights: DMAAccess
    var isUntranslatedOnly = false
  }

  struct Asked: Hashable, Sendable {
    var address: UInt64
    var noWrite: Bool
    var prefix: PASIDPrefix?
  }

  struct Access: Hashable, Sendable {
    enum Kind: Hashable, Sendable { case untranslated, translated }
    var kind: Kind
    var prefix: PASIDPrefix?
    var address: UInt64
    var access: DMAAccess
  }

  struct State {
    var pages: [UInt64: Page] = [:]
    var completion: TranslationCompletion?
    var asked: [Asked] = []
    var accesses: [Access] = []
    var pageRequests: [PageRequest] = []
    var outcome = PageRequestOutcome.queued
    var completed: [UInt32] = []
    var cache: (any TranslationCache)?
    var onTranslate: (@Sendable () -> Void)?
  }

  let memory: HeapMemory
  let state = Mutex(State())

  init(memory: HeapMemory) { self.memory = memory }

  func map(_ address: UInt64, to physical: UInt64, _ rights: DMAAccess = [.read, .write]) {
    state.withLock { $0.pages[address >> 12] = Page(address: physical, rights: rights) }
  }

  var cache: (any TranslationCache)? { state.withLock { $0.cache } }

  /// Returns the translation requests since the last call.
  func takeAsked() -> [Asked] {
    state.withLock { state in
      defer { state.asked = [] }
      return state.asked
    }
  }

  func takeAccesses() -> [Access] {
    state.withLock { state in
      defer { state.accesses = [] }
      return state.accesses
    }
  }

  func makePort(for requester: Requester) -> any DMAPort {
    Port(root: self, requester: requester, kind: .untranslated, prefix: nil)
  }

  func makeRequestPort(for requester: Requester) -> any RequestPort { Requests(root: self, requester: requester) }

  private final class Requests: RequestPort {
    let root: ScriptedRoot
    let requester: Requester

    init(root: ScriptedRoot, requester: Requester) {
      self.root = root
      self.requester = requester
    }

    func dmaPort(for prefix: PASIDPrefix?) -> any DMAPort {
      Port(root: root, requester: requester, kind: .untranslated, prefix: prefix)
    }

    var translatedPort: any DMAPort { Port(root: root, requester: requester, kind: .translated, prefix: nil) }

    func translate(_ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?) -> TranslationCompletion {
      let (completion, hook) = root.state.withLock { state -> (TranslationCompletion, (@Sendable () -> Void)?) in
        state.asked.append(Asked(address: address, noWrite: noWrite, prefix: prefix))
        if let completion = state.completion { return (completion, nil) }
        guard let page = state.pages[address >> 12] else { return (.success(.noAccess()), state.onTranslate) }
        let translation = DeviceTranslation(
          address: page.address, shift: 12, isReadable: page.rights.contains(.read),
          isWritable: page.rights.contains(.write), isExecutable: page.rights.contains(.execute),
          isUntranslatedOnly: page.isUntranslatedOnly)
        return (.success(translation), state.onTranslate)
      }
      hook?()
      return completion
    }

    func requestPage(_ request: PageRequest) -> PageRequestOutcome {
      root.state.withLock { state in
        state.pageRequests.append(request)
        return state.outcome
      }
    }

    func completeInvalidations(_ tags: UInt32) { root.state.withLock { $0.completed.append(tags) } }
    func connect(_ cache: (any TranslationCache)?) { root.state.withLock { $0.cache = cache } }
  }

  private final class Port: DMAPort {
    let root: ScriptedRoot
    let requester: Requester
    let kind: Access.Kind
    let prefix: PASIDPrefix?
    let inFlight = RequestsInFlight()
    var memory: any PhysicalMemory { root.memory }

    init(root: ScriptedRoot, requester: Requester, kind: Access.Kind, prefix: PASIDPrefix?) {
      self.root = root
      self.requester = requester
      self.kind = kind
      self.prefix = prefix
    }

    func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
      guard requester.busMasterEnable else { throw .disabled }
      let page = root.state.withLock { state in
        state.accesses.append(Access(kind: kind, prefix: prefix, address: address, access: access))
        return state.pages[address >> 12]
      }
      let within = address & 0xfff
      let count = min(count, Int(0x1000 - within))
      if kind == .translated { return PhysicalSegment(address: address, count: count) }
      guard let page, page.rights.isSuperset(of: access) else { throw .translation }
      return PhysicalSegment(address: page.address | within, count: count)
    }

    func noteUnclaimed() { requester.receiveMasterAbort() }
  }
}
