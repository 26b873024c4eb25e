import Control

switch Control.parse(Array(CommandLine.arguments.dropFirst())) {
case .run(let configuration): print(configuration)
case .print(let text), .fail(let text): print(text, terminator: "")
}
