// SPDX-License-Identifier: MIT
// Which keys a query sees, stated anew from the text of the definition (docs/concepts.md, Hassani
// et al., arXiv:2504.16922) by enumerating tokens. What the tests expect comes from here and never
// from src/core/window.h.
#ifndef VECINA_TESTS_DEFINITION_H_
#define VECINA_TESTS_DEFINITION_H_

#include <cstdint>
#include <vector>

#include "vecina/vecina.h"

namespace vecina::tests {

// One axis of one sample, in tokens.
struct AxisRule {
  int64_t length;        // tokens of key and value
  int64_t query_length;  // tokens of query
  int64_t kernel_size, stride, output_stride, dilation;
  bool is_causal;
  bool is_attention;  // no window: every key, or if causal every key j <= i
};
AxisRule axis_rule(const vecina_problem& problem, int axis);  // full length

// Query tokens 0, output_stride, 2 * output_stride, ... in order.
std::vector<int64_t> query_tokens(const AxisRule& axis);
// Key tokens that the query at token `query` sees, in order.
std::vector<int64_t> visible_keys(const AxisRule& axis, int64_t query);
// Where the pair stands in the bias: the distance in steps of the dilation plus kernel_size - 1.
int64_t bias_index(const AxisRule& axis, int64_t query, int64_t key);

}  // namespace vecina::tests
#endif  // VECINA_TESTS_DEFINITION_H_
