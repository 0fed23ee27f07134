// SPDX-License-Identifier: MIT
// The split form on the CPU: qk, av and their gradients as steps of five kinds, each of which owns
// what it writes, so that the bits do not depend on the number of threads.
#ifndef VECINA_CPU_SPLIT_H_
#define VECINA_CPU_SPLIT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/arguments.h"
#include "core/backend.h"
#include "core/problem.h"
#include "cpu/launch.h"
#include "cpu/layout.h"

namespace vecina::internal::cpu {

// One axis, by the window of each query. Queries count output tokens.
struct SplitAxis {
  struct Query {
    int64_t begin;  // token of its first key
    int32_t count;  // keys
    int32_t empty;  // slots before the first key
    int32_t bias;   // index of the first key's bias
    // Queries from this on whose windows are the same but for where they begin: output_stride
    // tokens after the one before.
    int32_t alike = 1;
  };
  struct Seers {  // the queries that see a key: first, first + query_step, ...
    int32_t first = 0, count = 0;
    int32_t alike = 1;  // keys from this on, each of which the next queries see in the same slots
  };
  std::vector<Query> queries = {{0, 1, 0, 0}};
  std::vector<Seers> keys = {{0, 1}};
  int64_t kernel_size = 1, dilation = 1, query_step = 1;
  int64_t query_extent = 1, output_stride = 1;

  int64_t num_queries() const { return static_cast<int64_t>(queries.size()); }
  // Where a key stands in the window of a query that sees it.
  int32_t slot(int64_t key, int64_t query) const {
    const Query& q = queries[static_cast<size_t>(query)];
    return static_cast<int32_t>(key - q.begin) / static_cast<int32_t>(dilation) + q.empty;
  }
  int64_t num_keys() const { return static_cast<int64_t>(keys.size()); }
};

// Which of its tensors a step writes; it reads the others that it has.
enum class SplitKind {
  weights,     // weights = scale * rows . keys + bias
  rows,        // rows = scale * sum over slots of weights * keys
  keys,        // keys = scale * sum over queries that see it of weights * rows
  additional,  // the same of the additional tokens
  bias,        // bias = sum over queries of weights
};

// Strides in elements: batch, three token axes, head. The last dimension has 1.
struct SplitTensor {
  char* data = nullptr;  // nullptr: not there
  int64_t batch = 0, head = 0;
  std::array<int64_t, 3> token = {};
};

struct SplitStep {
  SplitKind kind = SplitKind::weights;
  double scale = 1.0;
  double empty = 0.0;             // what stands in slots without a key
  bool rows_are_queries = false;  // rows have the tokens of query, not those of output
  SplitTensor rows, keys, additional, weights, bias;
};

// Where a unit keeps what in its scratch, in bytes.
struct SplitScratch {
  size_t offsets = 0, places = 0, bias_places = 0;  // int64_t: see split-inl.h
  size_t additional_offsets = 0;
  size_t raw = 0, factors = 0;      // weights of a list of rows: as they are, and converted
  size_t row = 0;                   // of head_dim
  size_t weights = 0;               // of all heads of some queries
  size_t bias_rows = 0, table = 0;  // bias of one window, of one head
  size_t no_bias = 0;               // zeros, of the additional tokens
  size_t total = 0;
};
inline constexpr int64_t kQueriesAtOnce = 512;  // of a list over all queries
// What is computed together, at most; of one token more weights.
inline constexpr int64_t kTokensAtOnce = 32, kStagedWeights = 4096;
inline constexpr size_t kMaxLanes = 8;

struct SplitPlan {
  SplitPlan(const Problem& problem, bool right_aligned);

  int32_t dtype;
  int64_t batch, additional_tokens, window;  // window: slots of it
  int heads, heads_kv;
  std::array<SplitAxis, 3> axes;  // missing outer axes have one token
  int64_t num_queries = 1, num_keys = 1;
  int64_t most_seers = 1;  // queries that see one key
  int64_t bias_size = 1;   // of one head
  double pairs;            // (query, slot) pairs of all heads

  int64_t num_units(const SplitStep& step, int head_dim) const;
  int64_t tokens_per_unit(int head_dim) const;
  SplitScratch scratch(int head_dim) const;
};

struct SplitUnit {
  const SplitPlan& plan;
  const SplitStep& step;
  const SplitScratch& at;
  int head_dim;
  int64_t unit;
  char* scratch;
};
void run_split_unit(const SplitUnit& unit);

std::unique_ptr<Plan> make_split_plan(const Problem& problem, const SplitArgs& example,
                                      Resources* resources);

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_SPLIT_H_
