// SPDX-License-Identifier: MIT
// The computations that a problem has.
#ifndef VECINA_CORE_PASS_H_
#define VECINA_CORE_PASS_H_

namespace vecina::internal {

enum class Pass { forward, backward, qk, av, qk_backward, av_backward };

// As messages say it: "this qk problem"; forward needs no word.
constexpr const char* pass_words(Pass pass) {
  switch (pass) {
    case Pass::forward:
      return "";
    case Pass::backward:
      return "backward ";
    case Pass::qk:
      return "qk ";
    case Pass::av:
      return "av ";
    case Pass::qk_backward:
      return "qk backward ";
    case Pass::av_backward:
      return "av backward ";
  }
  return "";
}
constexpr bool is_split(Pass pass) { return pass != Pass::forward && pass != Pass::backward; }

}  // namespace vecina::internal
#endif  // VECINA_CORE_PASS_H_
