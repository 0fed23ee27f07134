// SPDX-License-Identifier: MIT
// Cuts a forward problem into units and lays out their scratch.
#include <algorithm>
#include <limits>
#include <numeric>

#include "core/tensor.h"
#include "cpu/forward.h"
#include "cpu/layout.h"

namespace vecina::internal::cpu {
namespace {

// Packed keys and values of one unit should leave room in L2 (512 KiB and more on x86) for what
// passes through it.
constexpr size_t kPackedBytes = 200 * 1024;
// Where the least band takes more, boxes are cut, and what lies at a cut is packed twice. Vectors
// of 512 bits come with an L2 of 1 MiB and more, and then that costs more than it gains.
constexpr size_t most_packed_bytes(const ForwardKernel& kernel) {
  return kernel.lanes * kernel.element_bytes == 64 ? 320 * 1024 : kPackedBytes;
}

constexpr int64_t kUnitsOfLargeWindows = 32;

// Keys that so many vectors of queries share are read where they lie: each is used a few times
// only.
constexpr int kVectorsOfKeysInPlace = 8;
// And their values if so few bytes stay in L1 from one queries' sums to the next.
constexpr int kValuesInPlaceBytes = 16 * 1024;

bool is_native(const Problem& problem) {
  return problem.dtype() == VECINA_F32 || problem.dtype() == VECINA_F64;
}

// The queries of dilation group `residue`: tokens that are multiples of output_stride as well.
AxisGroup make_group(const Axis& axis, bool is_attention, int residue) {
  const int dilation = static_cast<int>(axis.dilation);
  const int output_stride = static_cast<int>(axis.output_stride);
  AxisGroup group;
  const int length = na_group_length(static_cast<int>(axis.extent), dilation, residue);
  group.window = {length, is_attention ? length : static_cast<int>(axis.kernel_size),
                  static_cast<int>(axis.stride), axis.is_causal};
  group.token = residue;
  group.token_step = dilation;
  group.step = output_stride / std::gcd(output_stride, dilation);
  group.first = 0;
  while (group.first < group.step && group.to_token(group.first) % output_stride != 0) {
    ++group.first;
  }
  group.phases = 1;
  group.output_first = group.to_token(group.first) / output_stride;
  group.output_step = int64_t{dilation} * group.step / output_stride;
  group.query_extent = is_attention ? static_cast<int>(axis.query_extent) : group.window.extent;
  group.num_queries = group.first >= group.step || group.first >= group.query_extent
                          ? 0
                          : (group.query_extent - group.first + group.step - 1) / group.step;
  return group;
}

// Innermost axis: queries that share a window become phases of one lane.
void split_phases(AxisGroup* group) {
  if (key_layout(*group) == KeyLayout::shared || group->window.stride == 1) return;
  group->step = group->phases = group->window.stride;
  group->output_step =
      int64_t{group->token_step} * group->step;  // no output_stride beside a stride
  group->num_queries = (group->query_extent + group->step - 1) / group->step;
}

// Neighbouring queries in one lane: their keys are the same vectors but for the first and the last.
// `rows` of queries that share their keys are better still: their keys are all the same.
void choose_twins(int lanes, int rows, AxisGroup* group) {
  const int queries = lanes * kMaxTwins;
  const int padded = round_up(group->num_queries, queries);
  if (group->step == 1 && rows < 3 && 8 * (padded - group->num_queries) <= padded) {
    group->twins = kMaxTwins;
  }
}

// Half a vector takes little more than half the time of a whole one, where that has two passes, and
// none takes longer.
void choose_last_vector(const ForwardKernel& kernel, AxisGroup* group) {
  const int last = group->num_queries % kernel.lanes;
  group->narrows_last =
      kernel.has_narrow_vectors && group->twins == 1 && last > 0 && 2 * last <= kernel.lanes;
}

// True if the tensor's token axes are one axis in memory, with the innermost one's stride: stepping
// over the end of a row leads to the next row. An axis of one token may have any stride, the
// innermost too; then the others cannot be walked with it.
bool is_flat(const vecina_tensor& tensor, int rank) {
  if (!given(tensor)) return true;
  int64_t stride = tensor.strides[rank];
  for (int d = rank; d > 0; --d) {
    if (tensor.shape[d] > 1 && tensor.strides[d] != stride) return false;
    stride *= tensor.shape[d];
  }
  return true;
}

PackedBox forward_box(const ForwardPlan& plan, const Box& box) {
  return plan.matrix.is_used() ? matrix_box(plan, box)
                               : packed_box(plan, box, /*may_have_strips=*/true);
}

// Scratch elements for one packed row of keys and of values of a box.
struct PackedRow {
  size_t keys, values;
};
PackedRow packed_row(const ForwardPlan& plan, const Box& box) {
  const PackedBox packed = forward_box(plan, box);
  const auto tokens = static_cast<size_t>(packed.ranges[2].size());
  const bool is_transposed = packed.runs.num_runs > 0;
  const size_t values = tokens * static_cast<size_t>(plan.value_pitch);
  return {is_transposed ? static_cast<size_t>(packed.runs.row(plan.key_words))
                        : tokens * static_cast<size_t>(plan.key_pitch),
          plan.matrix.is_used() ? values / 2 : values};  // two of bfloat16 in an element
}

int num_queries(const Box& box, int axis) {
  const auto a = static_cast<size_t>(axis);
  return box.end[a] - box.begin[a];
}
KeyRange outer_key_range(const ForwardPlan& plan, const Box& box, int axis, int begin, int end) {
  const auto a = static_cast<size_t>(axis);
  return key_range(plan.groups[a][static_cast<size_t>(box.group[a])], begin, end);
}
KeyRange outer_key_range(const ForwardPlan& plan, const Box& box, int axis) {
  const auto a = static_cast<size_t>(axis);
  return outer_key_range(plan, box, axis, box.begin[a], box.end[a]);
}

// The most rows of keys that `band` queries along the axis see.
int rows_of_band(const ForwardPlan& plan, const Box& box, int axis, int band) {
  const auto a = static_cast<size_t>(axis);
  int rows = 0;
  for (int first = box.begin[a]; first < box.end[a]; first += band) {
    const int last = std::min(first + band, box.end[a]);
    rows = std::max(rows, outer_key_range(plan, box, axis, first, last).size());
  }
  return rows;
}

// Rows of keys that a ring holds.
size_t packed_rows(const ForwardPlan& plan, const Box& box, const PackedRing& ring) {
  const int others = outer_key_range(plan, box, 1 - ring.axis).size();
  return static_cast<size_t>(ring.rows) * static_cast<size_t>(others);
}
size_t packed_bytes(const ForwardPlan& plan, const Box& box, const PackedRing& ring,
                    int element_bytes) {
  const PackedRow row = packed_row(plan, box);
  return packed_rows(plan, box, ring) * (row.keys + row.values / (plan.has_value_pairs ? 2 : 1)) *
         static_cast<size_t>(element_bytes);
}

// The widest band that leaves room in L2. A tile holds several rows of queries of the middle axis.
PackedRing packed_ring(const ForwardPlan& plan, const Box& box, int element_bytes) {
  PackedRing ring = {ring_axis(box), 0, 0};
  const int least = ring.axis == 0 ? 1 : kTileRows;
  const int queries = num_queries(box, ring.axis);
  for (ring.band = queries;; ring.band -= std::max(1, ring.band / 8)) {
    ring.band = std::max(ring.band, least);
    // Whole pairs of rows.
    const bool has_pairs = plan.matrix.is_used() && plan.matrix.pair == MatrixPair::rows;
    if (has_pairs && ring.axis == 1 && ring.band < queries) ring.band &= ~1;
    ring.rows = rows_of_band(plan, box, ring.axis, ring.band);
    if (plan.has_value_pairs && ring.axis == 1) {
      // Whole pairs, and one row more, since the first of a pair overwrites what its second was.
      ring.rows = round_up(ring.rows + 1, 2);
    }
    if (ring.band == least || packed_bytes(plan, box, ring, element_bytes) <= kPackedBytes) {
      return ring;
    }
  }
}

// A cut packs the keys at its seam twice, so axes much longer than their window are cut first.
class BoxCutter {
 public:
  explicit BoxCutter(Partition* plan) : plan_(*plan) {}

  void cut(int64_t enough, const std::function<bool(const Box&)>& is_too_large,
           const std::function<int(const Box&)>& ring_axis) {
    while (true) {
      const int64_t units = plan_.num_units();
      const bool too_few = units > 0 && units < enough;
      std::vector<Box> next;
      for (const Box& box : plan_.boxes) {
        const bool too_large = is_too_large(box);
        // For the caches a cut must not pack much twice; for idle threads it may.
        const int axis = too_few     ? best_axis(box, 0.25, /*but=*/-1)
                         : too_large ? best_axis(box, 1.0, ring_axis(box))
                                     : -1;
        if (axis < 0) {
          next.push_back(box);
        } else {
          push_halves(box, static_cast<size_t>(axis), &next);
        }
      }
      const bool done = next.size() == plan_.boxes.size();
      plan_.boxes = std::move(next);
      if (done) return;
    }
  }

 private:
  const AxisGroup& axis_of(const Box& box, size_t a) const {
    return plan_.groups[a][static_cast<size_t>(box.group[a])];
  }

  // The axis whose half still is the longest in windows; none if below `least` windows.
  int best_axis(const Box& box, double least, int but) const {
    int best = -1;
    double best_ratio = least;
    for (size_t a = 0; a < kRank; ++a) {
      if (static_cast<int>(a) == but) continue;
      const int count = box.end[a] - box.begin[a];
      const AxisGroup& axis = axis_of(box, a);
      const int smallest = a == 2 ? plan_.lanes * axis.twins : 1;
      if (count < 2 * smallest) continue;
      // Every query reads the whole of a shared axis: a cut packs all of it again.
      const double window = static_cast<double>(axis.window.kernel_size) / axis.step;
      const double ratio = 0.5 * count / window;
      if (ratio >= best_ratio) {
        best = static_cast<int>(a);
        best_ratio = ratio;
      }
    }
    return best;
  }

  void push_halves(const Box& box, size_t a, std::vector<Box>* boxes) const {
    int middle = box.begin[a] + (box.end[a] - box.begin[a]) / 2;
    if (a == 2) {
      middle = box.begin[a] + round_up(middle - box.begin[a], plan_.lanes * axis_of(box, a).twins);
    }
    Box first = box, second = box;
    first.end[a] = second.begin[a] = middle;
    boxes->push_back(first);
    boxes->push_back(second);
  }

  Partition& plan_;
};

// A row of queries with short windows: little is lost by packing only what one vector needs, and
// that stays in L1.
bool is_long_row(const ForwardPlan& plan, const Box& box) {
  const AxisGroup& axis = plan.groups[2][static_cast<size_t>(box.group[2])];
  const int queries = plan.lanes * axis.twins;
  return box.end[0] - box.begin[0] == 1 && box.end[1] - box.begin[1] == 1 &&
         box.end[2] - box.begin[2] > queries && 4 * axis.window.kernel_size <= queries * axis.step;
}

// Pairs of bfloat16 where the CPU multiplies them fast: whole blocks of a transpose, or whole
// vectors where keys are copied. Additional tokens are packed as floats.
void take_pairs(const Problem& problem, const ForwardKernel& kernel, ForwardPlan* plan) {
  const bool is_copied =
      std::any_of(plan->groups[2].begin(), plan->groups[2].end(),
                  [](const AxisGroup& group) { return key_layout(group) == KeyLayout::shared; });
  plan->has_pairs = kernel.has_fast_pair_products && problem.dtype() == VECINA_BF16 &&
                    plan->head_dim % (is_copied ? 2 * kernel.lanes : 8) == 0 &&
                    plan->additional_tokens == 0;
  plan->key_words = plan->has_pairs ? plan->head_dim / 2 : plan->head_dim;
}

// Windows of several rows, whose weights are kept row by row.
bool takes_value_pairs(const ForwardPlan& plan) {
  constexpr int kLeastRows = 3;
  return plan.has_pairs &&
         std::all_of(
             plan.groups[1].begin(), plan.groups[1].end(),
             [](const AxisGroup& group) { return group.window.kernel_size >= kLeastRows; }) &&
         std::all_of(plan.groups[2].begin(), plan.groups[2].end(),
                     [](const AxisGroup& group) { return group.twins == 1; });
}

// True if all lanes share their keys, and so few vectors of queries do that packing does not pay.
bool has_few_readers(const ForwardPlan& plan) {
  return key_layout(plan.groups[kRank - 1].front()) == KeyLayout::shared &&
         std::all_of(plan.boxes.begin(), plan.boxes.end(), [&](const Box& box) {
           return num_queries(box, 2) * plan.head_group <= kVectorsOfKeysInPlace * plan.lanes;
         });
}

// Queries in lanes: what packing needs to know. Returns how many units are enough.
int64_t begin_lanes(const Problem& problem, const ForwardKernel& kernel, int64_t enough,
                    ForwardPlan* plan) {
  take_pairs(problem, kernel, plan);
  plan->key_pitch = plan->key_words;
  plan->value_pitch = round_up(plan->head_dim_value, kernel.lanes);
  // In one dimension a value is used by kernel_size queries only: copying it first does not pay.
  plan->values_in_place = problem.rank() == 1 && !problem.is_attention() && is_native(problem) &&
                          plan->value_pitch == plan->head_dim_value;
  const int query_rows = plan->groups[1].front().num_queries * plan->head_group;
  plan->streams_output = plan->tensor_bytes > kStreamedBytes;
  for (AxisGroup& group : plan->groups[kRank - 1]) {
    // Where all lanes read the same keys, the bias of neighbouring lanes is one load without twins.
    if (plan->bias.given && key_layout(group) == KeyLayout::shared) continue;
    choose_twins(plan->lanes, query_rows, &group);
  }
  for (AxisGroup& group : plan->groups[kRank - 1]) choose_last_vector(kernel, &group);
  plan->has_value_pairs = takes_value_pairs(*plan);
  // Of twins half as many: what one sum reads of their values then stays in L1 too.
  plan->max_slots = max_slots(kernel.lanes, kernel.element_bytes) / 2;
  plan->weights_pitch = twin_pitch(plan->lanes, kernel.element_bytes);
  const auto& lane_groups = plan->groups[kRank - 1];
  if (std::all_of(lane_groups.begin(), lane_groups.end(),
                  [](const AxisGroup& group) { return group.twins == 1; })) {
    plan->max_slots = static_cast<int>(
        std::clamp<int64_t>(window_keys(*plan) + plan->additional_tokens, 1, 2 * plan->max_slots));
    plan->weights_pitch = weights_pitch(plan->max_slots, plan->lanes);
  }
  // A vector more, so that those of neighbouring vectors of queries do not share cache sets.
  plan->queries_pitch = (plan->head_dim + 1) * kernel.lanes;

  // Where the sums of large windows are interrupted depends on the boxes, which then must not
  // depend on the threads: their number must not change a bit.
  if (problem.rank() > 1 && window_keys(*plan) + plan->additional_tokens > plan->max_slots) {
    return kUnitsOfLargeWindows;
  }
  return enough;
}

// The scratch of the same, but for packed rows.
void lay_out_lanes(ForwardPlan* plan, ScratchLayout* take) {
  const auto lanes = static_cast<size_t>(plan->lanes);
  const auto additional = static_cast<size_t>(plan->additional_tokens);
  ForwardScratch& scratch = plan->scratch;
  scratch.additional_keys = (*take)(additional * static_cast<size_t>(plan->key_pitch));
  scratch.additional_values = (*take)(additional * static_cast<size_t>(plan->value_pitch));
  scratch.queries = (*take)(kTileVectors * static_cast<size_t>(plan->queries_pitch));
  scratch.weights =
      (*take)(kTileVectors * static_cast<size_t>(plan->weights_pitch)) + kFactors * lanes;
  scratch.sums = (*take)(kTileVectors * lanes * static_cast<size_t>(plan->value_pitch));
  if (plan->bias.given) {
    const auto tables =
        static_cast<size_t>(plan->head_group) * static_cast<size_t>(plan->bias.size());
    scratch.bias =
        (*take)(tables + 2 * lanes) + lanes;  // vectors of lanes that are no queries reach out
  }
}

void lay_out_scratch(ForwardPlan* plan, int element_bytes) {
  size_t keys = 0, values = 0, tokens = 0;  // the largest of any box
  for (const Box& box : plan->boxes) {
    PackedBox packed = forward_box(*plan, box);
    packed.ring = packed_ring(*plan, box, element_bytes);
    // The same rows are pairs wherever a box begins.
    if (plan->has_value_pairs) packed.ranges[1].begin &= ~1;
    const PackedRow row = packed_row(*plan, box);
    const auto rows = static_cast<size_t>(packed.ring_rows());
    keys = std::max(keys, rows * row.keys);
    values = std::max(values, rows * row.values);
    tokens = std::max(tokens, rows * static_cast<size_t>(packed.ranges[2].size()));
    plan->packed.push_back(packed);
  }
  ScratchLayout take(element_bytes);
  plan->scratch.keys = take(keys + 2 * static_cast<size_t>(plan->lanes));
  plan->scratch.values = take(values);
  if (plan->matrix.is_used()) {
    lay_out_matrix(tokens, plan, &take);
  } else {
    lay_out_lanes(plan, &take);
  }
  plan->packed_scratch =
      lay_out_packed(*plan, std::max(plan->head_dim, plan->head_dim_value), element_bytes, &take);
  plan->scratch.total = take.total();
}

}  // namespace

KeyLayout key_layout(const AxisGroup& axis) {
  return axis.window.kernel_size == axis.window.extent ? KeyLayout::shared : KeyLayout::shifted;
}

int borderless_begin(const NaAxis& window, int p) {
  // Far from both borders: whole stride groups to the right on an axis that is long enough.
  const int away = round_up(window.kernel_size, window.stride);
  NaAxis endless = window;
  endless.extent = std::numeric_limits<int>::max();
  return na_window_begin(endless, p + away) - away;
}

int packed_key(const AxisGroup& axis, int p) {
  const NaAxis& window = axis.window;
  if (key_layout(axis) == KeyLayout::shifted) {
    if (p < 0) {
      p = window.is_causal ? -1 : p + window.kernel_size;
    } else if (p >= window.extent) {
      p -= window.kernel_size;
    }
  }
  return p < window.extent ? p : -1;
}

int filled_up(const AxisGroup& axis, int count, int lanes) {
  const int filled = round_up(count, lanes * axis.twins), half = lanes / 2;
  return axis.narrows_last && filled - count >= half ? filled - half : filled;
}

KeyRange key_range(const AxisGroup& axis, int begin, int end) {
  if (begin >= end) return {0, 0};
  return {axis.begin(axis.position(begin)), axis.end(axis.position(end - 1))};
}

KeyRange lane_key_range(const AxisGroup& axis, int begin, int end, int lanes) {
  if (begin >= end) return {0, 0};
  if (key_layout(axis) == KeyLayout::shared) return {0, axis.window.extent};
  const int last = begin + filled_up(axis, end - begin, lanes) - 1;
  return {borderless_begin(axis.window, axis.position(begin)),
          borderless_begin(axis.window, axis.position(last)) + axis.window.kernel_size};
}

KeyRuns key_runs(const AxisGroup& axis, const KeyRange& range, int lanes, bool may_have_strips) {
  KeyRuns runs;
  runs.num_runs = axis.step * axis.twins;
  // Whole lines, so that packing stores do not cross them; of whole rows an odd number of them,
  // since a power of two would put all head_dim entries in a few cache sets.
  constexpr int kLine = kLineBytes / sizeof(float);
  const auto columns_of = [&](int tokens) {
    return round_up((tokens + runs.num_runs - 1) / runs.num_runs, kLine);
  };
  const int queries = lanes * axis.twins;
  const int of_strip = std::min(axis.step * (queries - 1) + axis.window.kernel_size, range.size());
  const int step = axis.step * queries;
  const int strips = (range.size() - of_strip + step - 1) / step + 1;
  runs.columns = columns_of(range.size());
  runs.strips = 0;
  runs.pitch = (runs.num_runs * runs.columns / kLine | 1) * kLine;
  // Half as much room again pays where a strip of floats is one line, which no load crosses.
  const int strip = columns_of(of_strip);
  const int64_t most = strip == kLine ? int64_t{3} * runs.columns / 2 : runs.columns;
  if (may_have_strips && int64_t{strips} * strip <= most) {
    runs.columns = strip;
    runs.strips = strips;
    runs.pitch = runs.num_runs * runs.columns;
  }
  return runs;
}

int ring_axis(const Box& box) { return num_queries(box, 0) > 1 ? 0 : 1; }

PackedBox packed_box(const Partition& plan, const Box& box, bool may_have_strips) {
  PackedBox packed = {};
  for (size_t a = 0; a < kRank; ++a) {
    const AxisGroup& axis = plan.groups[a][static_cast<size_t>(box.group[a])];
    packed.ranges[a] = a + 1 < kRank ? key_range(axis, box.begin[a], box.end[a])
                                     : lane_key_range(axis, box.begin[a], box.end[a], plan.lanes);
    if (a + 1 == kRank && key_layout(axis) == KeyLayout::shifted) {
      packed.runs = key_runs(axis, packed.ranges[a], plan.lanes, may_have_strips);
    }
  }
  return packed;
}

PackedScratch lay_out_packed(const Partition& plan, int num_zeros, int element_bytes,
                             ScratchLayout* take) {
  size_t tokens = 0;
  for (const PackedBox& packed : plan.packed) {
    tokens = std::max(tokens, static_cast<size_t>(packed.ranges[2].size()));
  }
  PackedScratch scratch;
  scratch.num_zeros = static_cast<size_t>(num_zeros);
  scratch.zeros = (*take)(scratch.num_zeros);
  // A window is no longer than what it is in.
  const size_t per_offset = sizeof(int64_t) / static_cast<size_t>(element_bytes);
  scratch.key_offsets = (*take)((tokens + kMaxTwins) * per_offset);
  scratch.positions = (*take)(tokens);
  return scratch;
}

void find_key_offsets(int num_keys, int num_runs, int columns, int64_t* offsets) {
  for (int j = 0, column = 0; j < num_keys; ++column) {
    for (int run = 0; run < num_runs && j < num_keys; ++run, ++j) {
      offsets[j] = int64_t{run} * columns + column;
    }
  }
}

Strides strides_of(const vecina_tensor& tensor, int rank) {
  Strides strides;
  if (!given(tensor)) return strides;
  strides.batch = tensor.shape[0] == 1 ? 0 : tensor.strides[0];
  strides.head = tensor.strides[rank + 1];
  for (int a = 0; a < rank; ++a) {
    strides.token[static_cast<size_t>(kRank - rank + a)] = tensor.strides[1 + a];
  }
  return strides;
}

BiasTable bias_table(const Problem& problem, const vecina_tensor& bias) {
  BiasTable table;
  if (!given(bias)) return table;
  table.given = true;
  table.head = bias.strides[0];
  for (int a = 0; a < problem.rank(); ++a) {
    const auto axis = static_cast<size_t>(kRank - problem.rank() + a);
    table.sizes[axis] = static_cast<int>(2 * problem.axis(a).kernel_size - 1);
    table.strides[axis] = bias.strides[1 + a];
  }
  return table;
}

bool is_dense(const Problem& problem, std::initializer_list<const vecina_tensor*> tensors) {
  if (problem.has_bias()) return false;  // tells the axes apart
  for (int a = 0; a < problem.rank(); ++a) {
    const Axis& axis = problem.axis(a);
    if (axis.kernel_size != axis.extent || axis.output_stride != 1 || axis.is_causal) return false;
  }
  for (const vecina_tensor* tensor : tensors) {
    if (!is_flat(*tensor, problem.rank())) return false;
  }
  return problem.rank() > 1;
}

void partition(const Problem& problem, bool is_dense, bool has_phases, int lanes, Partition* plan) {
  plan->batch = problem.batch();
  plan->heads_kv = problem.heads_kv();
  plan->head_group = problem.head_group();
  plan->head_dim = problem.head_dim();
  plan->head_dim_value = problem.head_dim_value();
  plan->additional_tokens = problem.additional_tokens();
  plan->scale = problem.scale();
  plan->lanes = lanes;
  for (size_t a = 0; a < kRank; ++a) {
    const int from = static_cast<int>(a) - (kRank - problem.rank());
    Axis axis;
    if (is_dense) {
      axis.extent = axis.query_extent = axis.kernel_size = a == 2 ? problem.num_keys() : 1;
    } else if (from >= 0) {
      axis = problem.axis(from);
    }
    const bool is_attention = problem.is_attention() && a == kRank - 1;
    for (int residue = 0; residue < axis.dilation; ++residue) {
      plan->groups[a].push_back(make_group(axis, is_attention, residue));
      if (a == kRank - 1 && has_phases) split_phases(&plan->groups[a].back());
    }
  }
  for (size_t z = 0; z < plan->groups[0].size(); ++z) {
    for (size_t y = 0; y < plan->groups[1].size(); ++y) {
      for (size_t x = 0; x < plan->groups[2].size(); ++x) {
        const Box box = {{static_cast<int>(z), static_cast<int>(y), static_cast<int>(x)},
                         {0, 0, 0},
                         {plan->groups[0][z].num_queries, plan->groups[1][y].num_queries,
                          plan->groups[2][x].num_queries}};
        if (box.end[0] > 0 && box.end[1] > 0 && box.end[2] > 0) plan->boxes.push_back(box);
      }
    }
  }
}

int64_t window_keys(const Partition& plan) {
  int64_t keys = 1;
  for (const std::vector<AxisGroup>& groups : plan.groups) {
    int most = 0;
    for (const AxisGroup& group : groups) most = std::max(most, group.window.kernel_size);
    keys *= most;
  }
  return keys;
}

void cut_boxes(Partition* plan, int64_t enough, const std::function<bool(const Box&)>& is_too_large,
               const std::function<int(const Box&)>& ring_axis) {
  BoxCutter(plan).cut(enough, is_too_large, ring_axis);
}

ForwardPlan plan_forward(const Problem& problem, const vecina_forward_args& example,
                         const ForwardKernel& kernel, int64_t enough) {
  const bool dense = is_dense(
      problem, {&example.query, &example.key, &example.value, &example.output, &example.lse});
  ForwardPlan plan;
  const bool may_be_matrix = kernel.run_matrix != nullptr && can_take_matrix_form(problem);
  plan.direct.is_used =
      !(may_be_matrix && kernel.matrix_everywhere) && takes_direct_form(problem, kernel);
  partition(problem, dense, /*has_phases=*/!plan.direct.is_used,
            plan.direct.is_used ? kernel.direct_lanes : kernel.lanes, &plan);
  if (may_be_matrix && !plan.direct.is_used &&
      (kernel.matrix_everywhere || is_matrix_form_faster(plan))) {
    plan.matrix.run = kernel.run_matrix;
  }
  plan.has_lse = given(example.lse);
  const int rank = problem.rank();
  plan.query = strides_of(example.query, rank);
  plan.key = strides_of(example.key, rank);
  plan.value = strides_of(example.value, rank);
  plan.output = strides_of(example.output, rank);
  plan.lse = strides_of(example.lse, rank);
  plan.additional_key = strides_of(example.additional_key, 1);
  plan.additional_value = strides_of(example.additional_value, 1);
  plan.bias = bias_table(problem, example.bias);
  for (const vecina_tensor* tensor :
       {&example.query, &example.key, &example.value, &example.output}) {
    plan.tensor_bytes += num_elements(*tensor) * dtype_bytes(tensor->dtype);
  }
  if (plan.direct.is_used) {
    plan_direct(problem, kernel, enough, &plan);
    return plan;
  }

  plan.fetches_far = plan.tensor_bytes > (plan.matrix.is_used() ? kFarBytes : kernel.far_bytes);
  if (plan.matrix.is_used()) {
    begin_matrix(&plan);
  } else {
    enough = begin_lanes(problem, kernel, enough, &plan);
  }
  const auto is_too_large = [&](const Box& box) {
    const PackedRing ring = packed_ring(plan, box, kernel.element_bytes);
    return packed_bytes(plan, box, ring, kernel.element_bytes) > most_packed_bytes(kernel) ||
           is_long_row(plan, box);
  };
  cut_boxes(&plan, enough, is_too_large, ring_axis);
  plan.keys_in_place = (rank == 1 || dense) && is_native(problem) && has_few_readers(plan);
  plan.shared_values_in_place = plan.keys_in_place && plan.value_pitch == plan.head_dim_value &&
                                int64_t{plan.groups[kRank - 1].front().window.extent} *
                                        plan.value_pitch * kernel.element_bytes <=
                                    kValuesInPlaceBytes;
  lay_out_scratch(&plan, kernel.element_bytes);
  return plan;
}

}  // namespace vecina::internal::cpu
