// SPDX-License-Identifier: MIT
// vecina completion, vecina man: written from CLI11's tree of commands and options, so they cannot
// disagree with --help.
#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/text.h"
#include "vecina/vecina.h"

namespace vecina::cli {
namespace {

std::vector<const CLI::App*> subcommands(const CLI::App& root) {
  return root.get_subcommands([](const CLI::App*) { return true; });
}

std::vector<const CLI::Option*> named_options(const CLI::App& app) {
  return app.get_options([](const CLI::Option* option) { return option->nonpositional(); });
}

std::string long_options(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : named_options(app)) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return join(names, " ");
}

int print_completion(const CLI::App& root) {
  std::vector<std::string> names;
  for (const CLI::App* app : subcommands(root)) names.push_back(app->get_name());
  fmt::print(
      "# bash completion for vecina; to use it: source <(vecina completion bash)\n"
      "_vecina() {{\n"
      "  local words\n"
      "  case ${{COMP_CWORD}}:${{COMP_WORDS[1]}} in\n"
      "    1:*) words=\"{} {}\" ;;\n",
      join(names, " "), long_options(root));
  for (const CLI::App* app : subcommands(root)) {
    fmt::print("    *:{}) words=\"{}\" ;;\n", app->get_name(), long_options(*app));
  }
  fmt::print(
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"${{COMP_WORDS[COMP_CWORD]}}\"))\n"
      "}}\n"
      "complete -o default -F _vecina vecina\n");
  return 0;
}

// Roff takes a leading dot for a request and a plain hyphen for a line break.
std::string roff(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '-' || c == '\\') result += '\\';
    if (c == '.' && (result.empty() || result.back() == '\n')) result += "\\&";
    result += c;
  }
  return result;
}

void print_manual_options(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    const std::string name =
        option->nonpositional() ? option->get_name(false, true) : option->get_name(true);
    fmt::print(".TP\n.BI \"{} \" \"{}\"\n{}\n", roff(name), roff(option->get_option_text()),
               roff(option->get_description()));
  }
}

int print_manual(const CLI::App& root) {
  fmt::print(
      ".TH VECINA 1 \"\" \"vecina {}\" \"User commands\"\n"
      ".SH NAME\nvecina \\- {}\n"
      ".SH SYNOPSIS\n.B vecina\n.I command\n[options]\n"
      ".SH OPTIONS\n",
      vecina_version(), roff(root.get_description()));
  print_manual_options(root);
  fmt::print(".SH COMMANDS\n");
  for (const CLI::App* app : subcommands(root)) {
    fmt::print(".SS {}\n{}.\n", roff(app->get_name()), roff(app->get_description()));
    print_manual_options(*app);
    if (!app->get_footer().empty()) fmt::print(".PP\n.nf\n{}\n.fi\n", roff(app->get_footer()));
  }
  fmt::print(
      ".SH EXIT STATUS\n0 done, 1 failed, 2 wrong usage or something needed is missing.\n"
      ".SH ENVIRONMENT\n"
      ".TP\n.B VECINA_BACKEND\nBackend to use: cpu, cuda, reference.\n"
      ".TP\n.B VECINA_NUM_THREADS\nThreads of the CPU backend.\n"
      ".TP\n.B VECINA_CPU_TARGET\nInstruction set of the CPU backend, for example avx2.\n"
      ".TP\n.B VECINA_CUDA_TARGET\nPlan as for a GPU of this compute capability times 10.\n"
      ".TP\n.B VECINA_CACHE_DIR\nWhere compiled kernels and tuned plans lie.\n"
      ".TP\n.B VECINA_NVRTC\nThe compiler of the CUDA backend, a path to libnvrtc.so.\n"
      ".TP\n.B VECINA_LOG\nplan: on standard error, which backend takes a problem; cache: why "
      "compiled kernels are not kept. Commas between.\n");
  return 0;
}

}  // namespace

Command add_completion(CLI::App& root) {
  CLI::App* app = root.add_subcommand("completion", "Print the shell's completion script");
  const auto shell = std::make_shared<std::string>("bash");
  app->add_option("shell", *shell, "Which shell")
      ->check(CLI::IsMember(std::vector<std::string>{"bash"}))
      ->option_text("[bash]");
  app->footer("Example:\n  source <(vecina completion bash)");
  return {app, [&root, shell] { return print_completion(root); }};
}

Command add_man(CLI::App& root) {
  CLI::App* app = root.add_subcommand("man", "Print the manual page");
  app->footer("Example:\n  vecina man | man -l -");
  return {app, [&root] { return print_manual(root); }};
}

}  // namespace vecina::cli
