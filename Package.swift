// swift-tools-version: 6.2
import PackageDescription

// Every target is Swift 6, strictly memory safe, and clean of warnings.
let strict: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  // Release: the walkers and rings are generic or small; let them be inlined across modules.
  .unsafeFlags(["-cross-module-optimization"], .when(configuration: .release)),
  // One use of _StringProcessing, such as `text.contains("vfio")`, links its regular expressions into the static
  // executable: 1.3 MB. Without the import such a use does not compile.
  .unsafeFlags(["-Xfrontend", "-disable-implicit-string-processing-module-import"]),
]

func library(_ name: String, uses dependencies: [Target.Dependency] = []) -> Target {
  .target(name: name, dependencies: dependencies, swiftSettings: strict)
}

func tests(of name: String, uses dependencies: [Target.Dependency] = []) -> Target {
  .testTarget(
    name: name + "Tests", dependencies: [.byName(name: name)] + dependencies,
    swiftSettings: [.swiftLanguageMode(.v6), .treatAllWarnings(as: .error), .enableUpcomingFeature("ExistentialAny")])
}

let package = Package(
  name: "nestling",
  products: [.executable(name: "nestling", targets: ["nestling"])],
  targets: [
    // The host's side: system calls, and `unsafe`, live here and nowhere else.
    .target(name: "CLinux", cSettings: [.unsafeFlags(["-Wall", "-Wextra", "-Werror"])]),
    library("Linux", uses: ["CLinux"]),
    library("KVM", uses: ["Linux", "CLinux"]),
    library("VFIO", uses: ["Linux", "CLinux"]),
    library("Vhost", uses: ["Linux", "CLinux"]),
    // Lets another process serve a device's virtqueues.
    library("VhostUser", uses: ["Linux", "Hardware"]),

    // JSON, by Debian's Jansson.
    .systemLibrary(name: "CJansson", pkgConfig: "jansson", providers: [.apt(["libjansson-dev"])]),
    library("JSON", uses: ["CJansson"]),

    // The guest's side: pure Swift, no system call.
    library("Hardware"),
    library("PCI", uses: ["Hardware"]),
    library("VTd", uses: ["Hardware"]),
    library("Devices", uses: ["PCI", "Hardware"]),

    // Where the two meet, and what a person types.
    library("Passthrough", uses: ["VFIO", "Linux", "VTd", "PCI", "Hardware"]),
    library(
      "Machine",
      uses: ["Passthrough", "KVM", "VFIO", "Vhost", "VhostUser", "Linux", "VTd", "Devices", "PCI", "Hardware"]),
    library("Control", uses: ["Machine", "Passthrough", "JSON", "VTd", "PCI", "Hardware"]),
    .executableTarget(
      name: "nestling", dependencies: ["Control"],
      swiftSettings: strict + [.unsafeFlags(["-static-executable"], .when(configuration: .release))],
      linkerSettings: [
        .unsafeFlags(["-static-executable", "-Xlinker", "-s"], .when(configuration: .release))
      ]),

    // Doubles for what the guest's side asks of its host: memory, workers, interrupt routes.
    .target(
      name: "TestSupport", dependencies: ["Hardware"], path: "Tests/TestSupport",
      swiftSettings: [.swiftLanguageMode(.v6), .treatAllWarnings(as: .error)]),
    // A kernel's VFIO and iommufd, with its rules, and the sysfs of its devices.
    .target(
      name: "FakeVFIO", dependencies: ["VFIO", "CLinux", "Hardware"], path: "Tests/FakeVFIO",
      swiftSettings: [.swiftLanguageMode(.v6), .treatAllWarnings(as: .error), .enableUpcomingFeature("ExistentialAny")]),
    // A back end of vhost-user on a thread of the test, which can also break the protocol.
    .target(
      name: "FakeVhostUser", dependencies: ["VhostUser", "Linux", "Hardware", "TestSupport"],
      path: "Tests/FakeVhostUser",
      swiftSettings: [.swiftLanguageMode(.v6), .treatAllWarnings(as: .error), .enableUpcomingFeature("ExistentialAny")]),
    // A driver's side of a virtqueue, and a tap interface's wire, for tests with the kernel's vhost-net.
    .target(
      name: "VhostSupport", dependencies: ["Vhost", "Linux", "CLinux"], path: "Tests/VhostSupport",
      swiftSettings: [.swiftLanguageMode(.v6), .treatAllWarnings(as: .error), .enableUpcomingFeature("ExistentialAny")]),
    // A driver's view of the VT-d unit, and a walker written apart from the unit's.
    .target(
      name: "VTdOracle", dependencies: ["VTd", "Hardware", "TestSupport"], path: "Tests/VTdOracle",
      swiftSettings: [.swiftLanguageMode(.v6), .treatAllWarnings(as: .error), .enableUpcomingFeature("ExistentialAny")]),

    // `Tests/bench`: the unit beside a plain C walker that does the same checks.
    .target(
      name: "CWalker", path: "Tests/Benchmarks/CWalker", cSettings: [.unsafeFlags(["-Wall", "-Wextra", "-Werror"])]),
    .executableTarget(
      name: "vtd-bench", dependencies: ["VTd", "Linux", "PCI", "Hardware", "VTdOracle", "CWalker"],
      path: "Tests/Benchmarks/VTd",
      swiftSettings: [
        .swiftLanguageMode(.v6), .treatAllWarnings(as: .error), .enableUpcomingFeature("ExistentialAny"),
        .unsafeFlags(["-cross-module-optimization"], .when(configuration: .release)),
      ]),
    // What the fuzzers run, and the unit tests replay from the committed corpus. TESTABLE: the machine is built so that
    // tests see its insides, as `Tests/fuzz` has it in a release build, too.
    .target(
      name: "FuzzTargets",
      dependencies: [
        "Control", "JSON", "Machine", "VhostUser", "VTd", "Devices", "PCI", "Linux", "Hardware", "TestSupport",
        "VTdOracle",
      ],
      path: "Tests/Fuzz/Targets",
      swiftSettings: [
        .swiftLanguageMode(.v6), .treatAllWarnings(as: .error), .enableUpcomingFeature("ExistentialAny"),
        .define("TESTABLE", .when(configuration: .debug)),
      ]),
    .testTarget(
      name: "FuzzTests", dependencies: ["FuzzTargets"],
      swiftSettings: [.swiftLanguageMode(.v6), .treatAllWarnings(as: .error), .enableUpcomingFeature("ExistentialAny")]),
    tests(of: "Linux", uses: ["CLinux", "TestSupport"]),
    tests(of: "KVM", uses: ["Linux", "CLinux"]),
    tests(of: "VFIO", uses: ["Linux", "CLinux", "FakeVFIO"]),
    tests(of: "Vhost", uses: ["Linux", "CLinux", "TestSupport", "VhostSupport"]),
    tests(of: "VhostUser", uses: ["Linux", "Hardware", "TestSupport", "FakeVhostUser"]),
    tests(of: "Hardware", uses: ["TestSupport"]),
    tests(of: "PCI", uses: ["Hardware", "TestSupport"]),
    tests(of: "VTd", uses: ["Hardware", "TestSupport", "VTdOracle"]),
    tests(of: "Devices", uses: ["Hardware", "PCI", "TestSupport"]),
    tests(
      of: "Passthrough",
      uses: ["Hardware", "PCI", "VTd", "VFIO", "FakeVFIO", "CLinux", "Linux", "VTdOracle", "TestSupport"]),
    tests(
      of: "Machine",
      uses: [
        "Control", "Hardware", "PCI", "Devices", "VTd", "Passthrough", "VFIO", "Vhost", "VhostUser", "FakeVFIO",
        "FakeVhostUser", "CLinux", "KVM", "Linux", "VTdOracle", "TestSupport", "VhostSupport",
      ]),
    tests(
      of: "Control",
      uses: ["Machine", "Passthrough", "VFIO", "JSON", "VTd", "PCI", "Hardware", "Linux", "VTdOracle", "TestSupport"]),
    tests(of: "JSON"),
  ]
)

// `Tests/fuzz` alone asks for this program: it links with libFuzzer, which other builds do not have.
if Context.environment["NESTLING_FUZZ"] != nil {
  package.targets += [
    .target(name: "CFuzzer", path: "Tests/Fuzz/CFuzzer"),
    .executableTarget(
      name: "nestling-fuzz", dependencies: ["FuzzTargets", "CFuzzer"], path: "Tests/Fuzz/Main",
      swiftSettings: [.swiftLanguageMode(.v6), .treatAllWarnings(as: .error)]),
  ]
}
