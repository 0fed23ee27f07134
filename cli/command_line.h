// SPDX-License-Identifier: MIT
#ifndef VECINA_CLI_COMMAND_LINE_H_
#define VECINA_CLI_COMMAND_LINE_H_

namespace vecina::cli {

// What `vecina` does with its arguments; returns the exit code and throws nothing.
int run_command_line(int argc, char** argv);

}  // namespace vecina::cli
#endif  // VECINA_CLI_COMMAND_LINE_H_
