// SPDX-License-Identifier: MIT
// When the forward pass takes the direct form, and its plan.
#include <algorithm>

#include "cpu/forward.h"
#include "cpu/layout.h"

namespace vecina::internal::cpu {
namespace {

// Packed keys and values of one unit should leave room in L2.
constexpr int64_t kPackedBytes = 320 * 1024;
// With several axes, keys in a row of a window of the direct form.
constexpr int kMostDirectKeysOfRow = 8;
// Caches choose their sets by the address within this many bytes.
constexpr int64_t kSetBytes = 4096;

// A block of several vectors of queries shares what it sets up, but its weights should stay in L1.
constexpr int kSlotsOfLargeBlocks = 64;

bool fills_vectors(const Problem& problem, int lanes) {
  return problem.head_dim() % lanes == 0 && problem.head_dim_value() % lanes == 0;
}

// Of the queries that vectors along the innermost axis have room for, those that there are.
double lane_share(const Axis& row, int lanes) {
  int queries = 0, room = 0;
  for (int residue = 0; residue < row.dilation; ++residue) {
    const int count =
        na_group_length(static_cast<int>(row.extent), static_cast<int>(row.dilation), residue);
    queries += count;
    room += round_up(count, lanes);
  }
  return static_cast<double>(queries) / room;
}

// True if queries in lanes were faster: neighbours whose windows overlap, of 5x5 keys and more, if
// few lanes are empty, for heads that share keys sooner than for others. Those lose more to
// additional tokens too.
bool prefers_lanes(const Problem& problem, int lanes) {
  const Axis& row = problem.axis(problem.rank() - 1);
  if (row.stride > 1 || row.output_stride > 1) return false;
  if (row.kernel_size > kMostDirectKeysOfRow) return true;
  int64_t keys = 1;
  for (int a = 0; a < problem.rank(); ++a) keys *= problem.axis(a).kernel_size;
  if (row.kernel_size < 5 || keys < 25) return false;
  const bool shares_keys = problem.head_group() > 1;
  if (problem.additional_tokens() > 0 && !shares_keys) return false;
  return lane_share(row, lanes) >= (shares_keys ? 0.85 : 0.9375);
}

// True if keys of bfloat16 may be multiplied in pairs where they lie, 32 elements of a query at
// once and no more than stay in registers. Additional tokens have kernels for floats only.
bool takes_pairs(const ForwardPlan& plan) {
  return (plan.head_dim == 32 || plan.head_dim == 64) && plan.head_dim_value % 32 == 0 &&
         plan.additional_tokens == 0;
}

int window_rows(const ForwardPlan& plan) {
  int rows = 1;
  for (size_t a = 0; a + 1 < kRank; ++a) {
    int most = 0;
    for (const AxisGroup& group : plan.groups[a]) {
      most = std::max(most, group.window.kernel_size);
    }
    rows *= most;
  }
  return rows;
}

// Elements of a packed row of `tokens` tokens: the rows of a window lie side by side in the cache's
// sets, not upon each other.
int64_t packed_row(int64_t tokens, int64_t window, int64_t pitch, int element_bytes) {
  const int64_t set = kSetBytes / element_bytes, row = tokens * pitch;
  const int64_t wanted = window * pitch % set;
  return row + (wanted - row % set + set) % set;
}

int64_t rows_of(const ForwardPlan& plan, const Box& box) {
  int64_t rows = 1;
  for (size_t a = 0; a + 1 < kRank; ++a) {
    const AxisGroup& axis = plan.groups[a][static_cast<size_t>(box.group[a])];
    rows *= key_range(axis, box.begin[a], box.end[a]).size();
  }
  return rows;
}
int64_t tokens_of(const ForwardPlan& plan, const Box& box) {
  return direct_key_range(plan.groups[2][static_cast<size_t>(box.group[2])], box.begin[2],
                          box.end[2])
      .size();
}

// The most that a block of queries sees: windows of a strided axis move further at once.
int64_t tokens_of_block(const ForwardPlan& plan, const Box& box) {
  const AxisGroup& axis = plan.groups[2][static_cast<size_t>(box.group[2])];
  return std::min<int64_t>(tokens_of(plan, box),
                           int64_t{axis.step} * (plan.direct.block_queries - 1) +
                               axis.window.stride + axis.window.kernel_size);
}

void lay_out_scratch(int row_keys, int window_rows, int slots, int element_bytes,
                     ForwardPlan* plan) {
  DirectForm& direct = plan->direct;
  int64_t rows = 0, tokens = 0;  // the most of any box
  for (const Box& box : plan->boxes) {
    rows = std::max(rows, rows_of(*plan, box));
    tokens = std::max(tokens, direct.one_row ? tokens_of_block(*plan, box) : tokens_of(*plan, box));
  }
  const int64_t window = row_keys + direct.block_queries - 1;
  const auto row = [&](int pitch) {
    return window_rows == 1 ? tokens * pitch : packed_row(tokens, window, pitch, element_bytes);
  };
  direct.key_row = row(plan->key_pitch);
  direct.value_row = row(plan->value_pitch);
  direct.weights_pitch = slots;
  ScratchLayout take(element_bytes);
  const auto queries = static_cast<size_t>(direct.block_queries);
  const auto additional = static_cast<size_t>(plan->additional_tokens);
  direct.weights = take(queries * static_cast<size_t>(slots));
  direct.additional_weights = take(additional * static_cast<size_t>(kDirectVectors * plan->lanes));
  direct.queries = take(queries * static_cast<size_t>(plan->key_pitch));
  const auto of_rows = static_cast<size_t>(window_rows);
  const size_t offset_size = sizeof(int64_t) / static_cast<size_t>(element_bytes);
  direct.key_rows = take(of_rows * offset_size);
  direct.value_rows = take(of_rows * offset_size);
  direct.row_slots = take(of_rows);
  if (plan->bias.given) {
    const int heads = plan->heads_at_once * plan->head_group;
    direct.bias = take(static_cast<size_t>(heads * plan->bias.size() + plan->lanes));
  }
  if (!direct.in_place) {
    direct.additional_keys = take(additional * static_cast<size_t>(plan->key_pitch));
    direct.additional_values = take(additional * static_cast<size_t>(plan->value_pitch));
    direct.keys = take(static_cast<size_t>(rows * direct.key_row));
    direct.values = take(static_cast<size_t>(rows * direct.value_row));
  }
  plan->scratch.total = take.total();
}

}  // namespace

int direct_slots(int row_keys, int num_rows, int grouped_rows, int lanes, int* row_slots) {
  const int whole = num_rows / grouped_rows * grouped_rows;
  const int group = round_up(row_keys * grouped_rows, lanes), row = round_up(row_keys, lanes);
  const int slots = num_rows / grouped_rows * group;
  for (int r = 0; r < num_rows; ++r) {
    row_slots[r] = r < whole ? r / grouped_rows * group + r % grouped_rows * row_keys
                             : slots + (r - whole) * row;
  }
  return slots + (num_rows - whole) * row;
}

KeyRange direct_key_range(const AxisGroup& axis, int begin, int end) {
  if (begin >= end) return {0, 0};
  // A causal window too is read as far as its kernel_size.
  return {axis.begin(axis.position(begin)),
          axis.begin(axis.position(end - 1)) + axis.window.kernel_size};
}

bool takes_direct_form(const Problem& problem, const ForwardKernel& kernel) {
  if (kernel.direct_lanes == 0 || problem.is_attention()) return false;
  if (problem.has_bias() && problem.rank() > 1) return false;  // add_bias knows one row of keys
  // Measured on Zen 3 with AVX2: windows of 63 keys in a row and of a whole row were faster with
  // queries in lanes, and with several axes others too (prefers_lanes). In one dimension copying
  // rows first costs more than it gains, unless they are converted anyway; rows that fill no
  // vectors, and 16 bits with a bias, gain with one vector of keys.
  const Axis& row = problem.axis(problem.rank() - 1);
  if (row.kernel_size > 2 * kernel.direct_lanes || row.kernel_size * row.dilation >= row.extent) {
    return false;
  }
  const bool is_whole = fills_vectors(problem, kernel.direct_lanes);
  if (problem.rank() == 1 && !is_whole &&
      !(kernel.reads_parts && problem.additional_tokens() == 0)) {
    return false;
  }
  const bool is_converted = problem.has_bias() && problem.dtype() != VECINA_F32;
  if (problem.rank() == 1 && (!is_whole || is_converted) && row.kernel_size > kernel.direct_lanes) {
    return false;
  }
  // Longer vectors than the direct form's gain with several axes, where more is computed for each
  // token that is packed.
  const bool has_longer = kernel.lanes > kernel.direct_lanes;
  if (problem.rank() > 1 && (has_longer || prefers_lanes(problem, kernel.lanes))) return false;
  int64_t rows = 1;
  for (int a = 0; a + 1 < problem.rank(); ++a) rows *= problem.axis(a).kernel_size;
  return rows * round_up<int64_t>(row.kernel_size, kernel.direct_lanes) <= kMaxDirectSlots;
}

void plan_direct(const Problem& problem, const ForwardKernel& kernel, int64_t enough,
                 ForwardPlan* plan) {
  DirectForm& direct = plan->direct;
  const int lanes = kernel.direct_lanes;
  plan->key_pitch = round_up(plan->head_dim, lanes);
  plan->value_pitch = round_up(plan->head_dim_value, lanes);
  direct.one_row = problem.rank() == 1;
  direct.in_place = direct.one_row && (problem.dtype() == VECINA_F32 ||
                                       (kernel.has_pair_products && takes_pairs(*plan)));
  const int row_keys = plan->groups[kRank - 1].front().window.kernel_size;
  const int rows = window_rows(*plan);
  direct.grouped_rows = grouped_rows(row_keys, lanes);

  const int64_t pitch = (plan->key_pitch + plan->value_pitch) * kernel.element_bytes;
  // In one dimension all heads of a token are read at once, as they lie.
  if (direct.one_row) plan->heads_at_once = plan->heads_kv;
  cut_boxes(plan, enough, [&](const Box& box) {
    return !direct.one_row && rows_of(*plan, box) * tokens_of(*plan, box) * pitch > kPackedBytes;
  });
  if (plan->num_units() < enough) plan->heads_at_once = 1;
  // Fewer rows, at a causal border, may take more slots than all of them: not in groups.
  const int slots = rows * round_up(row_keys, lanes);
  direct.block_queries = slots <= kSlotsOfLargeBlocks ? kDirectVectors * lanes : lanes;
  lay_out_scratch(row_keys, rows, slots, kernel.element_bytes, plan);
}

}  // namespace vecina::internal::cpu
