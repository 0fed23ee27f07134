// SPDX-License-Identifier: MIT
// Laying out working memory in whole cache lines.
#ifndef VECINA_CPU_LAYOUT_H_
#define VECINA_CPU_LAYOUT_H_

#include <cstddef>

namespace vecina::internal::cpu {

inline constexpr size_t kLineBytes = 64;

template <typename Integer>
constexpr Integer round_up(Integer value, Integer multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Places arrays of elements one after the other.
class ScratchLayout {
 public:
  explicit ScratchLayout(int element_bytes)
      : line_(kLineBytes / static_cast<size_t>(element_bytes)) {}

  // Where an array begins: on its own cache line, and a line apart from the one before, since loads
  // may run over the end.
  size_t operator()(size_t elements) {
    const size_t begin = total_;
    total_ += round_up(elements, line_) + line_;
    return begin;
  }
  size_t total() const { return total_; }

 private:
  const size_t line_;
  size_t total_ = 0;
};

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_LAYOUT_H_
