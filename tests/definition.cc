// SPDX-License-Identifier: MIT
// The definition in plain steps: dilation groups, stride groups, leaders, the nearest full window.
#include "definition.h"

#include <cstdlib>

namespace vecina::tests {
namespace {

// The tokens that a token can see at all: those a whole number of dilations away.
std::vector<int64_t> dilation_group(const AxisRule& axis, int64_t token) {
  std::vector<int64_t> members;
  for (int64_t other = 0; other < axis.length; ++other) {
    if ((other - token) % axis.dilation == 0) members.push_back(other);
  }
  return members;
}

// Position of the one member whose window all members of query's stride group use.
size_t leader_of(const AxisRule& axis, const std::vector<int64_t>& members, size_t query) {
  std::vector<size_t> full_group;  // of stride positions, some perhaps past the end
  const auto stride = static_cast<size_t>(axis.stride);
  size_t first = query;
  while (first % stride != 0) --first;
  for (size_t k = 0; k < stride; ++k) full_group.push_back(first + k);
  // Causal: the last one. Else the middle one, of two middles the right-hand one.
  const size_t leader = axis.is_causal ? full_group.back() : full_group[full_group.size() / 2];
  return leader < members.size() ? leader : members.size() - 1;
}

}  // namespace

AxisRule axis_rule(const vecina_problem& problem, int axis) {
  const bool is_attention = problem.kind == VECINA_ATTENTION;
  const int64_t extent = problem.extent[axis];
  const int64_t queries = problem.query_extent[axis];
  return {.length = extent,
          .query_length = is_attention && queries != 0 ? queries : extent,
          .kernel_size = is_attention ? extent : problem.kernel_size[axis],
          .stride = problem.stride[axis],
          .output_stride = problem.output_stride[axis],
          .dilation = problem.dilation[axis],
          .is_causal = problem.is_causal[axis] != 0,
          .is_attention = is_attention};
}

std::vector<int64_t> query_tokens(const AxisRule& axis) {
  std::vector<int64_t> tokens;
  for (int64_t token = 0; token < axis.query_length; ++token) {
    if (token % axis.output_stride == 0) tokens.push_back(token);
  }
  return tokens;
}

std::vector<int64_t> visible_keys(const AxisRule& axis, int64_t query) {
  std::vector<int64_t> keys;
  if (axis.is_attention) {
    for (int64_t key = 0; key < axis.length; ++key) {
      if (!axis.is_causal || key <= query) keys.push_back(key);
    }
    return keys;
  }
  const std::vector<int64_t> members = dilation_group(axis, query);
  size_t position = 0;
  while (members[position] != query) ++position;
  const size_t leader = leader_of(axis, members, position);
  const auto size = static_cast<size_t>(axis.kernel_size);
  if (axis.is_causal) {  // the kernel_size members that end at the leader, none after the query
    for (size_t key = 0; key <= position; ++key) {
      if (key + size > leader) keys.push_back(members[key]);
    }
    return keys;
  }
  // Of all runs of kernel_size members, the one that begins nearest to half a window before the
  // leader (kernel_size 2r: r before, the leader, r - 1 after).
  const int64_t wish = static_cast<int64_t>(leader) - axis.kernel_size / 2;
  size_t best = 0;
  for (size_t begin = 0; begin + size <= members.size(); ++begin) {
    const auto distance = [&](size_t b) { return std::abs(static_cast<int64_t>(b) - wish); };
    if (distance(begin) < distance(best)) best = begin;
  }
  for (size_t key = best; key < best + size; ++key) keys.push_back(members[key]);
  return keys;
}

int64_t bias_index(const AxisRule& axis, int64_t query, int64_t key) {
  return (key - query) / axis.dilation + axis.kernel_size - 1;
}

}  // namespace vecina::tests
