// SPDX-License-Identifier: MIT
// Which tensors a call has, and of which shape and dtype its problem needs them: one table, which
// checks walk and of which plans without memory are made.
#ifndef VECINA_CORE_ARGUMENTS_TABLE_H_
#define VECINA_CORE_ARGUMENTS_TABLE_H_

#include <array>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "core/arguments.h"
#include "core/problem.h"
#include "core/status.h"
#include "vecina/vecina.h"

namespace vecina::internal {

inline constexpr int kMaxDims = 6;

// A list of sizes that lives on the stack: a warm call allocates nothing.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) { append(sizes); }
  template <typename List>
  void append(const List& sizes) {
    for (const int64_t size : sizes) push_back(size);
  }
  void push_back(int64_t size) { sizes_[static_cast<size_t>(ndim_++)] = size; }
  int size() const { return ndim_; }
  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + ndim_; }

 private:
  std::array<int64_t, kMaxDims> sizes_ = {};
  int ndim_ = 0;
};

struct Expected {
  const char* name;
  const vecina_tensor* tensor;
  int32_t dtype;
  Shape shape;
  bool is_output = false;
  bool is_optional = false;
};

// Token counts of packed tensors; unused otherwise.
struct Totals {
  int64_t keys = 0, query_tokens = 0, outputs = 0;
};

// Appends the tensors of a call. Fails where one is given that the problem lacks.
Status expected_tensors(const Problem& problem, const vecina_forward_args& args,
                        const Totals& totals, std::vector<Expected>* expected);
Status expected_tensors(const Problem& problem, const vecina_backward_args& args,
                        const Totals& totals, std::vector<Expected>* expected);
Status expected_tensors(const Problem& problem, const SplitArgs& args, const Totals& totals,
                        std::vector<Expected>* expected);

}  // namespace vecina::internal
#endif  // VECINA_CORE_ARGUMENTS_TABLE_H_
