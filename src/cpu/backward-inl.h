// SPDX-License-Identifier: MIT
// Walks one unit of the backward pass in tiles of query rows x one vector of queries; rows of keys
// are packed before the first tile that reads them and written after the last. With P the
// probabilities, and everything that is summed over keys or queries kept in rows of head_dim:
//   P = exp(scale * query . key - lse),   dP = grad_output . value   lanes are queries
//   dS = P * (dP - delta + grad_lse),   delta = output . grad_output
//   grad_query = scale * sum dS * key                                lanes run along head_dim
//   grad_key = scale * sum dS * query,   grad_value = sum P * grad_output
// Part of backward.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_BACKWARD_INL_H_
#undef VECINA_CPU_BACKWARD_INL_H_
#else
#define VECINA_CPU_BACKWARD_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <type_traits>

#include "cpu/backward.h"
#include "cpu/backward_tile-inl.h"
#include "cpu/bias-inl.h"
#include "cpu/fetches-inl.h"
#include "cpu/key_gradients-inl.h"
#include "cpu/key_sums-inl.h"
#include "cpu/lane_unit-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/query_sums-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename Element>
class BackwardUnit : LaneUnit<Element, BackwardPlan> {
  using Base = LaneUnit<Element, BackwardPlan>;
  using typename Base::D, typename Base::LseType, typename Base::T;

 public:
  BackwardUnit(const BackwardPlan& plan, const BackwardPointers& pointers, int64_t unit,
               void* scratch)
      : Base(plan, pointers, unit, scratch),
        pointers_(pointers),
        layout_(keys_.layout()),
        starts_sums_(KeySums<Element>::starts_sums(lane_axis(), plan.max_slots)) {
    output_ = tensor_at<const Element>(pointers.output, plan.output, batch_, head_);
    lse_ = tensor_at<const LseType>(pointers.lse, plan.lse, batch_, head_);
    grad_output_ = tensor_at<const Element>(pointers.grad_output, plan.grad_output, batch_, head_);
    grad_lse_ = tensor_at<const LseType>(pointers.grad_lse, plan.grad_lse, batch_, head_);
    grad_query_ = tensor_at<Element>(pointers.grad_query, plan.grad_query, batch_, head_);
    streams_grad_query_ = kStreams<T, Element> && plan.streams_gradients &&
                          has_whole_vectors(grad_query_, plan.grad_query, kLanes);
    const int64_t head_kv = head_index_ % plan.heads_kv;
    grad_key_ = tensor_at<Element>(pointers.grad_key, plan.grad_key, batch_, head_kv);
    grad_value_ = tensor_at<Element>(pointers.grad_value, plan.grad_value, batch_, head_kv);

    const UnitSums<T> sums(plan, pointers, unit, scratch_);
    sums_ = sums.keys;
    additional_sums_ = sums.additional;
    bias_sums_ = sums.bias;
  }

  // Rows of keys are packed before the first tile that reads them, and their gradients written
  // after the last: few are in the cache at a time.
  void run() {
    prepare();
    const KeyGradients<Element> gradients(plan_, pointers_, head_index_);
    const AxisGroup& outer = keys_.axis(0);
    const int rows = rows_at_once() * (box_.end[1] - box_.begin[1]);
    const int step = layout_ == KeyLayout::shared ? box_.end[2] - box_.begin[2] : kLanes;
    int packed_z = keys_.range(0).begin, written_z = 0;
    for (int z = box_.begin[0]; z < box_.end[0]; ++z) {
      // Planes of keys that no query saw before, and packed ones that none sees after this one.
      const KeyRange fresh = {packed_z, outer.end(outer.position(z))};
      packed_z = std::max(packed_z, fresh.end);
      const KeyRange done = {written_z, z + 1 < box_.end[0]
                                            ? std::min(packed_z, outer.begin(outer.position(z + 1)))
                                            : outer.window.extent};
      int packed_y = keys_.range(1).begin, written_y = 0;
      for (int row = 0; row < rows; row += kBackwardRows) {
        const int num_rows = std::min(kBackwardRows, rows - row);
        fresh_ = {fresh, {packed_y, middle_keys(row + num_rows - 1).end}};
        pack_rows(z, row, num_rows);
        packed_y = std::max(packed_y, middle_keys(row + num_rows - 1).end);
        const int written_end = row + num_rows < rows
                                    ? std::min(packed_y, middle_keys(row + num_rows).begin)
                                    : keys_.axis(1).window.extent;
        const bool is_last_band = row + num_rows == rows;
        reads_ = {fresh, {packed_y, middle_keys(std::min(row + 2 * kBackwardRows, rows) - 1).end}};
        if (is_last_band) reads_ = first_reads(z + 1, packed_z, rows);
        if (!plan_.keeps_sums_apart && !gradients.streams()) {
          writes_ = {done, {written_y, written_end}};
        }
        for (int x = box_.begin[2]; x < box_.end[2]; x += step) {
          const bool is_last = x + step >= box_.end[2];
          next_ = {is_last ? box_.begin[2] : x + step, z, is_last ? row + num_rows : row, rows,
                   false};
          if (kFetchesFar && is_last && is_last_band) next_ = first_tile(z + 1, rows);
          run_tile(x, z, row, num_rows);
        }
        if (plan_.keeps_sums_apart) continue;
        write_rows(gradients, done, {written_y, written_end});
        written_y = std::max(written_y, written_end);
      }
      written_z = std::max(written_z, done.end);
    }
    if (plan_.additional_tokens > 0 && !plan_.keeps_additional_apart) {
      gradients.write_additional(additional_sums_, 1);
    }
    if (plan_.grad_bias.given) keep_bias_sums();
    gradients.finish();
    if (streams_grad_query_) hwy::FlushStream();
  }

 private:
  using Base::batch_, Base::box_, Base::head_, Base::head_index_, Base::key_, Base::keys_,
      Base::plan_, Base::query_, Base::scratch_, Base::value_;
  using Base::causal_view, Base::lane_axis, Base::num_queries, Base::output_offset,
      Base::query_offset, Base::to_next_unit, Base::visible_keys;
  using Base::kLog2E;
  static constexpr int kLanes = Base::kMaxLanes;
  static constexpr int kMaxRuns = BackwardTile<Element>::kMaxRuns;
  static constexpr T kHidden = -std::numeric_limits<T>::infinity();
  // AVX-512 computes so fast that it waits for the third cache; what the next tile reads is as much
  // as the first holds.
  static constexpr bool kFetchesFar = HWY_TARGET == HWY_AVX3;
  static constexpr Fetch kFetch = kFetchesFar ? Fetch::far : Fetch::near;

  using Tile = BackwardTile<Element>;
  using Place = typename Tile::Place;
  using Row = typename Tile::Row;
  using Rows = typename Tile::Rows;
  using Run = typename Tile::Run;

  // Rows of keys of some planes: packed for the next tiles, or written after these.
  struct Ahead {
    KeyRange planes, rows;
    bool is_of_next_unit = false;
    bool holds(int z, int y) const {
      return z >= planes.begin && z < planes.end && y >= rows.begin && y < rows.end;
    }
  };
  // What the first tiles at z pack, of whose planes those before packed_z are there; behind the
  // last z, of the next unit, which with one thread follows.
  Ahead first_reads(int z, int packed_z, int rows) const {
    const AxisGroup& outer = keys_.axis(0);
    const KeyRange first_band = {keys_.range(1).begin,
                                 middle_keys(std::min(kBackwardRows, rows) - 1).end};
    if (z < box_.end[0]) return {{packed_z, outer.end(outer.position(z))}, first_band};
    return {{keys_.range(0).begin, outer.end(outer.position(box_.begin[0]))}, first_band, true};
  }
  // The first tile at z, or of the next unit.
  NextTile first_tile(int z, int rows) const {
    const bool is_here = z < box_.end[0];
    return {box_.begin[2], is_here ? z : box_.begin[0], 0, rows, !is_here};
  }
  static constexpr int kNever = std::numeric_limits<int>::max();

  // Query rows at one position of the middle axis.
  int rows_at_once() const {
    const int rows = lane_axis().phases * plan_.head_group;
    if (layout_ == KeyLayout::shifted) return rows;
    return rows * vectors();  // they all see the same keys
  }
  int vectors() const { return (box_.end[2] - box_.begin[2] + kLanes - 1) / kLanes; }

  T* tile(size_t array, int r, int pitch) const {
    return scratch_ + array + ptrdiff_t{r} * kLanes * pitch;
  }
  T* probabilities(int r) const {
    return tile(plan_.scratch.probabilities, r, plan_.weights_pitch);
  }
  T* grad_logits(int r) const { return tile(plan_.scratch.grad_logits, r, plan_.weights_pitch); }

  // Of the middle axis, that a query row sees.
  KeyRange middle_keys(int row) const {
    const AxisGroup& middle = keys_.axis(1);
    const int position = middle.position(box_.begin[1] + row / rows_at_once());
    return {middle.begin(position), middle.end(position)};
  }

  void prepare() {
    std::fill_n(additional_sums_, plan_.additional_sums_size, T{0});
    std::fill_n(scratch_ + plan_.scratch.bias_sums, kLanes * plan_.bias_sums_size, T{0});
    this->pack_for_all_tiles();
  }

  // Keys and values of the fresh rows, and zeros for their sums, unless the tiles at query rows
  // [row, row + num_rows) start those.
  void pack_rows(int at_z, int row, int num_rows) {
    const auto count = static_cast<ptrdiff_t>(plan_.sums_tokens(keys_.box()));
    const AxisGroup& outer = keys_.axis(0);
    for (int z = fresh_.planes.begin; z < fresh_.planes.end; ++z) {
      for (int y = fresh_.rows.begin; y < fresh_.rows.end; ++y) {
        pack_row(z, y);
        bool is_seen = starts_sums_ && z >= outer.begin(outer.position(at_z));
        if (is_seen) {
          is_seen = false;  // between the windows of a downsampled axis
          for (int r = row; r < row + num_rows && !is_seen; ++r) {
            const KeyRange seen = middle_keys(r);
            is_seen = y >= seen.begin && y < seen.end;
          }
        }
        if (is_seen) continue;
        const ptrdiff_t first = plan_.first_sum(keys_.box(), z, y);
        std::fill_n(sums_ + first * plan_.key_pitch, count * plan_.key_pitch, T{0});
        std::fill_n(sums_ + plan_.sums_value + first * plan_.value_pitch, count * plan_.value_pitch,
                    T{0});
      }
    }
  }

  void pack_row(int z, int y) const {
    const Element* key = key_ + keys_.row_offset(plan_.key, z, y);
    const Element* value = value_ + keys_.row_offset(plan_.value, z, y);
    const ptrdiff_t row = keys_.row(z, y), first = row * keys_.tokens();
    T* const keys = scratch_ + plan_.scratch.keys + first * plan_.key_pitch;
    keys_.copy(key, plan_.key, 0, keys_.tokens(), plan_.head_dim, plan_.key_pitch, keys);
    if (layout_ == KeyLayout::shared) {
      keys_.copy(value, plan_.value, 0, keys_.tokens(), plan_.head_dim_value, plan_.value_pitch,
                 scratch_ + plan_.scratch.values + first * plan_.value_pitch);
      return;
    }
    keys_.transpose_copied(keys, plan_.head_dim, plan_.key_pitch, transposed_keys(row));
    keys_.transpose(value, plan_.value, plan_.head_dim_value, transposed_values(row));
  }
  T* transposed_keys(ptrdiff_t row) const {
    return scratch_ + plan_.scratch.transposed_keys + row * keys_.transposed_row(plan_.head_dim);
  }
  T* transposed_values(ptrdiff_t row) const {
    return scratch_ + plan_.scratch.transposed_values +
           row * keys_.transposed_row(plan_.head_dim_value);
  }

  void run_tile(int x, int z, int first_row, int num_rows) {
    Rows rows;
    for (int r = 0; r < num_rows; ++r) {
      set_up_row(place_of(x, z, first_row + r), r, &rows[static_cast<size_t>(r)]);
    }
    num_runs_ = 0;
    const int num_keys = visible_keys(rows, num_rows);
    is_whole_ = holds_all_keys(rows, num_rows, z, num_keys);
    const QuerySums<Element> query_sums = this->query_sums();
    for (int r = 0; r < num_rows; ++r) {
      Row& row = rows[static_cast<size_t>(r)];
      row.is_written_at_once = grad_query_ != nullptr && query_sums.can_write(row, is_whole_);
    }
    start_fetches(rows, num_rows, z, num_keys);
    if (!is_whole_) {
      for (int r = 0; r < num_rows; ++r) add_to_delta(&rows[static_cast<size_t>(r)], r);
    }
    if (has_far_lse(rows, num_rows)) sum_logits(x, z, num_keys, &rows, num_rows);
    for_each_run(x, z, num_keys, rows, num_rows,
                 [&](int count, int first, int last, const auto& place_run) {
                   Run* run = new_run(count, first, last, &rows, num_rows);
                   place_run(run);
                   add_logits(*run, rows);
                   fetches_.advance(run->num_slots());
                 });
    flush(&rows, num_rows);
    fetches_.finish();
    if (grad_query_ != nullptr) {
      for (int r = 0; r < num_rows; ++r) query_sums.write(&rows[static_cast<size_t>(r)], r);
    }
  }

  // body(count, first, last, place_run) for all keys that the tile sees: `count` of them, by rows
  // [first, last), and place_run(Run*) says which.
  template <class Body>
  void for_each_run(int x, int z, int num_keys, const Rows& rows, int num_rows,
                    const Body& body) const {
    const int position_z = keys_.axis(0).position(z);
    for (int key_z = keys_.axis(0).begin(position_z); key_z < keys_.axis(0).end(position_z);
         ++key_z) {
      for (int key_y = rows[0].key_begin; key_y < rows[static_cast<size_t>(num_rows - 1)].key_end;
           ++key_y) {
        // Windows only move forward from row to row: those that hold key_y follow each other.
        int first = 0, last = num_rows;
        while (key_y >= rows[static_cast<size_t>(first)].key_end) ++first;
        while (key_y < rows[static_cast<size_t>(last - 1)].key_begin) --last;
        if (first >= last) continue;  // between the windows of a downsampled axis
        for (int j = 0; j < num_keys; j += plan_.max_slots) {
          body(std::min(plan_.max_slots, num_keys - j), first, last,
               [&](Run* run) { set_window(x, key_z, key_y, j, run); });
        }
      }
    }
    for (int64_t j = 0; j < plan_.additional_tokens; j += plan_.max_slots) {
      const auto count =
          static_cast<int>(std::min<int64_t>(plan_.max_slots, plan_.additional_tokens - j));
      body(count, 0, num_rows, [&](Run* run) { set_additional(j, run); });
    }
  }

  bool has_far_lse(const Rows& rows, int num_rows) const {
    return std::any_of(rows.begin(), rows.begin() + num_rows, [&](const Row& row) {
      return row.softmax.template is_far<Element>(is_whole_);
    });
  }

  // Logits are computed twice, so that probabilities are what follows from them as they are here:
  // those of forward may be rounded otherwise, and lse is.
  void sum_logits(int x, int z, int num_keys, Rows* rows, int num_rows) const {
    for (int r = 0; r < num_rows; ++r) (*rows)[static_cast<size_t>(r)].softmax.begin_sums();
    for_each_run(x, z, num_keys, *rows, num_rows,
                 [&](int count, int first, int last, const auto& place_run) {
                   Run run;
                   run.count = count;
                   run.first = first;
                   run.last = last;
                   run.slots.fill(0);
                   place_run(&run);
                   add_logits(run, *rows);
                   for (int r = first; r < last; ++r) {
                     Row& row = (*rows)[static_cast<size_t>(r)];
                     T* logits = probabilities(r);
                     if (row.is_masked) {
                       for_each_hidden(run, row, [&](ptrdiff_t i) { logits[i] = kHidden; });
                     }
                     row.softmax.add_keys(static_cast<size_t>(count), logits);
                   }
                 });
    for (int r = 0; r < num_rows; ++r) {
      (*rows)[static_cast<size_t>(r)].softmax.template leave_lse<Element>(is_whole_);
    }
  }

  Place place_of(int x, int z, int index) const {
    Place place = {x, 0, z, 0, index % plan_.head_group};
    index /= plan_.head_group;
    place.phase = index % lane_axis().phases;
    index /= lane_axis().phases;
    if (layout_ == KeyLayout::shared) {
      place.x += index % vectors() * kLanes;
      index /= vectors();
    }
    place.k = box_.begin[1] + index;
    return place;
  }

  // A tile fetches what it writes last, what the next ones read, and gradients of keys that are
  // written after it, those that are needed first before the others. Each key of a row is in five
  // products.
  void start_fetches(const Rows& rows, int num_rows, int z, int num_keys) {
    const int position = keys_.axis(0).position(z);
    const int keys_z = keys_.axis(0).end(position) - keys_.axis(0).begin(position);
    int64_t slots = num_rows * plan_.additional_tokens;
    for (int r = 0; r < num_rows; ++r) {
      const Row& row = rows[static_cast<size_t>(r)];
      slots += int64_t{keys_z} * (row.key_end - row.key_begin) * num_keys;
    }
    fetches_.start(5 * slots);
    if (kFetchesFar && !plan_.fetches_far) return;
    const auto for_rows = [&](const auto& fetch) {
      for (int r = 0; r < num_rows; ++r) fetch(rows[static_cast<size_t>(r)], r);
    };
    for_rows([&](const Row& row, int /*r*/) { fetch_grad_query(row); });
    for_rows([&](const Row& /*row*/, int r) { fetch_next(r); });
    if (!kFetchesFar || layout_ != KeyLayout::shifted) return;
    const auto fetch = [&](const Ahead& ahead, const Element* tensor, const Strides& strides,
                           int size) {
      for_rows([&](const Row& row, int r) { fetch_keys(ahead, tensor, strides, size, row, r); });
    };
    const ptrdiff_t to_keys = reads_.is_of_next_unit ? to_next_unit(plan_.key, 1) : 0;
    const ptrdiff_t to_values = reads_.is_of_next_unit ? to_next_unit(plan_.value, 1) : 0;
    if (to_keys != 0 || !reads_.is_of_next_unit) {
      fetch(reads_, key_ + to_keys, plan_.key, plan_.head_dim);
      fetch(reads_, value_ + to_values, plan_.value, plan_.head_dim_value);
    }
    fetch(writes_, grad_key_, plan_.grad_key, plan_.head_dim);
    fetch(writes_, grad_value_, plan_.grad_value, plan_.head_dim_value);
  }
  // What row r of the next tile reads first.
  void fetch_next(int r) {
    if (next_.first_row + r >= next_.num_rows) return;
    const Place place = place_of(next_.x, next_.z, next_.first_row + r);
    const int64_t query_step =
        int64_t{lane_axis().token_step} * lane_axis().step * plan_.query.token[2];
    const int64_t output_step = lane_axis().output_step * plan_.grad_output.token[2];
    const int lanes = num_queries(place);
    ptrdiff_t to_queries = 0, to_gradients = 0;
    if (next_.is_of_next_unit) {
      to_queries = to_next_unit(plan_.query, plan_.head_group);
      to_gradients = to_next_unit(plan_.grad_output, plan_.head_group);
      if (to_queries == 0) return;
    }
    fetches_.add(query_ + to_queries + query_offset(plan_.query, place), query_step, lanes,
                 plan_.head_dim);
    fetches_.add(grad_output_ + to_gradients + output_offset(plan_.grad_output, place), output_step,
                 lanes, plan_.head_dim_value);
  }
  void fetch_grad_query(const Row& row) {
    if (grad_query_ == nullptr || streams_grad_query_) return;
    const int64_t step =
        int64_t{lane_axis().token_step} * lane_axis().step * plan_.grad_query.token[2];
    fetches_.add(row.grad_query, step, row.num_queries, plan_.head_dim);
  }
  // Of every kBackwardRows-th row of keys from r on, what stands at the queries of row r.
  void fetch_keys(const Ahead& ahead, const Element* tensor, const Strides& strides, int size,
                  const Row& row, int r) {
    if (tensor == nullptr) return;
    const AxisGroup& axis = lane_axis();
    const int first = axis.position(row.place.x);
    const int count = std::min(kLanes * axis.step, axis.window.extent - first);
    const int64_t stride = axis.token_step * strides.token[2];
    for (int z = ahead.planes.begin; z < ahead.planes.end; ++z) {
      for (int y = ahead.rows.begin + r; y < ahead.rows.end; y += kBackwardRows) {
        fetches_.add(tensor + keys_.row_offset(strides, z, y) + first * stride, stride, count,
                     size);
      }
    }
  }

  void set_up_row(const Place& place, int r, Row* row) {
    const AxisGroup& axis = lane_axis();
    const AxisGroup& middle = keys_.axis(1);
    row->place = place;
    if (plan_.bias.given) row->bias = {axis, place.x, place.phase};
    row->slots = 0;
    row->key_begin = middle.begin(middle.position(place.k));
    row->key_end = middle.end(middle.position(place.k));
    row->num_queries = num_queries(place);
    if (axis.window.is_causal) {
      for (int lane = 0; lane < kLanes; ++lane) {
        row->views[static_cast<size_t>(lane)] =
            causal_view(axis.position(place.x + lane) + place.phase);
      }
    }
    row->is_masked = axis.window.is_causal &&
                     (layout_ == KeyLayout::shared || axis.phases > 1 || row->views[0].begin > 0);
    row->has_views = row->is_masked && (layout_ == KeyLayout::shared || axis.phases > 1);
    const int64_t query_step = int64_t{axis.token_step} * axis.step;
    row->grad_query =
        grad_query_ + (grad_query_ == nullptr ? 0 : query_offset(plan_.grad_query, place));
    // Logits are powers of two's exponents from here on.
    load_rows(query_ + query_offset(plan_.query, place), query_step * plan_.query.token[2],
              row->num_queries, plan_.head_dim, plan_.key_pitch, plan_.scale * kLog2E,
              tile(plan_.scratch.queries, r, plan_.key_pitch),
              tile(plan_.scratch.transposed_queries, r, plan_.key_pitch));
    load_rows(grad_output_ + output_offset(plan_.grad_output, place),
              axis.output_step * plan_.grad_output.token[2], row->num_queries, plan_.head_dim_value,
              plan_.value_pitch, 1.0, tile(plan_.scratch.grad_outputs, r, plan_.value_pitch),
              tile(plan_.scratch.transposed_grad_outputs, r, plan_.value_pitch));
    row->has_sums = false;
    row->output = output_ + output_offset(plan_.output, place);
    set_up_softmax(
        lse_ + output_offset(plan_.lse, place),
        grad_lse_ == nullptr ? nullptr : grad_lse_ + output_offset(plan_.grad_lse, place), row);
  }

  // One row a lane, and transposed; zeros for lanes that are no queries.
  void load_rows(const Element* from, int64_t stride, int lanes, int size, int pitch, double scale,
                 T* rows, T* transposed) const {
    copy_rows(D(), from, stride, lanes, static_cast<size_t>(size), static_cast<size_t>(pitch),
              rows);
    std::fill(rows + ptrdiff_t{lanes} * pitch, rows + ptrdiff_t{kLanes} * pitch, T{0});
    transpose_rows(D(), RegularRows<T>(rows, pitch), static_cast<size_t>(size), kLanes,
                   static_cast<T>(scale), transposed);
  }

  void set_up_softmax(const LseType* lse, const LseType* grad_lse, Row* row) const {
    HWY_ALIGN T lses[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      lses[lane] = row->softmax.delta[lane] = row->softmax.grad_lse[lane] = 0;
      if (lane >= row->num_queries) continue;
      const int64_t step = lane * lane_axis().output_step;
      lses[lane] = lse[step * plan_.lse.token[2]];
      if (grad_lse == nullptr) continue;
      row->softmax.grad_lse[lane] = grad_lse[step * plan_.grad_lse.token[2]];
    }
    row->softmax.set_lse(hn::Load(D(), lses), row->num_queries);
  }

  // True if the tile is flushed only once, so that delta can be summed from what is held. That is
  // as exact as the sum over dP that it is subtracted from; output was rounded.
  bool holds_all_keys(const Rows& rows, int num_rows, int z, int num_keys) const {
    const int position = keys_.axis(0).position(z);
    const int keys_z = keys_.axis(0).end(position) - keys_.axis(0).begin(position);
    const int64_t additional = plan_.additional_tokens;
    int64_t keys = 0;
    for (int r = 0; r < num_rows; ++r) {
      const Row& row = rows[static_cast<size_t>(r)];
      keys = std::max<int64_t>(keys, int64_t{row.key_end - row.key_begin} * keys_z * num_keys);
    }
    const int rows_y = rows[static_cast<size_t>(num_rows - 1)].key_end - rows[0].key_begin;
    return keys + additional <= plan_.max_slots && int64_t{keys_z} * rows_y < kMaxRuns;
  }

  // delta += output . grad_output
  void add_to_delta(Row* row, int r) const {
    const D d;
    T* products = scratch_ + plan_.scratch.products;
    T* transposed = products + kLanes * kLanes;
    T* output = transposed + kLanes * kLanes;
    const T* grad_output = tile(plan_.scratch.grad_outputs, r, plan_.value_pitch);
    const int64_t stride = lane_axis().output_step * plan_.output.token[2];
    std::array<const T*, kLanes> rows;
    for (int lane = 0; lane < kLanes; ++lane, grad_output += plan_.value_pitch) {
      auto sum = hn::Zero(d);
      if (lane < row->num_queries) {
        copy_row(d, row->output + lane * stride, static_cast<size_t>(plan_.head_dim_value),
                 static_cast<size_t>(plan_.value_pitch), output);
        for (int i = 0; i < plan_.value_pitch; i += kLanes) {
          sum = hn::MulAdd(hn::Load(d, output + i), hn::Load(d, grad_output + i), sum);
        }
      }
      hn::Store(sum, d, products + lane * kLanes);
      rows[static_cast<size_t>(lane)] = products + lane * kLanes;
    }
    transpose_rows(d, ScatteredRows<T>{rows.data()}, static_cast<size_t>(plan_.lanes), kLanes, T{1},
                   transposed);
    auto delta = hn::Load(d, row->softmax.delta);
    for (int i = 0; i < kLanes; ++i) delta = hn::Add(delta, hn::Load(d, transposed + i * kLanes));
    hn::Store(delta, d, row->softmax.delta);
  }

  QuerySums<Element> query_sums() const {
    return {plan_, lane_axis(), scratch_, streams_grad_query_};
  }

  // Room for a run of `count` keys that rows [first, last) of the tile see, flushing what is there
  // if a row has none. Runs are written where they stay: copying what was just written in parts
  // would wait for it.
  Run* new_run(int count, int first, int last, Rows* rows, int num_rows) {
    bool is_full = num_runs_ == kMaxRuns;
    for (int r = first; r < last; ++r) {
      is_full = is_full || (*rows)[static_cast<size_t>(r)].slots + count > plan_.max_slots;
    }
    if (is_full) flush(rows, num_rows);
    Run* run = &runs_[static_cast<size_t>(num_runs_++)];
    run->count = count;
    run->first = first;
    run->last = last;
    for (int r = first; r < last; ++r) {
      Row& row = (*rows)[static_cast<size_t>(r)];
      run->slots[static_cast<size_t>(r)] = row.slots;
      row.slots += count;
    }
    return run;
  }

  // Keys of the window in one packed row, from j on.
  void set_window(int x, int z, int y, int j, Run* run) const {
    const ptrdiff_t row = keys_.row(z, y);
    const bool is_shared = layout_ == KeyLayout::shared;
    const ptrdiff_t lane = is_shared ? 0 : ptrdiff_t{x - box_.begin[2]};
    const ptrdiff_t key = lane * lane_axis().step + j, token = row * keys_.tokens() + key;
    const ptrdiff_t sum = plan_.first_sum(keys_.box(), z, y) + key;
    const T* keys = scratch_ + plan_.scratch.keys + token * plan_.key_pitch;
    const T* values = scratch_ + plan_.scratch.values + token * plan_.value_pitch;
    run->keys = keys;
    run->key_sums = sums_ + sum * plan_.key_pitch;
    run->value_sums = sums_ + plan_.sums_value + sum * plan_.value_pitch;
    run->key_columns = is_shared ? keys : transposed_keys(row) + keys_.column(x, plan_.head_dim);
    run->value_columns =
        is_shared ? values : transposed_values(row) + keys_.column(x, plan_.head_dim_value);
    run->first_key = j;
    run->first_fresh = kNever;
    if (starts_sums_ && fresh_.holds(z, y)) {
      run->first_fresh =
          x == box_.begin[2] ? 0 : KeySums<Element>::keys_written(run->count) - kLanes;
    }
    run->z = z;
    run->y = y;
    run->is_shared = is_shared;
    run->is_window = true;
  }

  void set_additional(int64_t j, Run* run) const {
    run->keys = run->key_columns = scratch_ + plan_.scratch.additional_keys + j * plan_.key_pitch;
    run->value_columns = scratch_ + plan_.scratch.additional_values + j * plan_.value_pitch;
    run->key_sums = additional_sums_ + j * plan_.key_pitch;
    run->value_sums = additional_sums_ + plan_.additional_value_sums + j * plan_.value_pitch;
    run->first_key = run->z = run->y = 0;
    run->first_fresh = kNever;
    run->is_shared = true;
    run->is_window = false;
  }

  void add_logits(const Run& run, const Rows& rows) const {
    add_products(run, run.key_columns, plan_.head_dim, plan_.key_pitch,
                 plan_.scratch.transposed_queries, plan_.scratch.probabilities);
    if (plan_.bias.given && run.is_window) add_bias(run, rows);
  }

  // Logits, or the products of grad_output and value.
  void add_products(const Run& run, const T* columns, int size, int pitch, size_t from,
                    size_t to) const {
    if (run.is_shared) {
      products<KeyLayout::shared>(run, columns, size, pitch, from, to);
    } else {
      products<KeyLayout::shifted>(run, columns, size, pitch, from, to);
    }
  }

  template <KeyLayout kLayout>
  void products(const Run& run, const T* columns, int size, int pitch, size_t from,
                size_t to) const {
    constexpr bool kIsShifted = kLayout == KeyLayout::shifted;
    LogitsArguments<T> arguments = {};
    arguments.head_dim = size;
    arguments.query_pitch = ptrdiff_t{kLanes} * pitch;
    arguments.keys = columns;
    arguments.key_offsets = kIsShifted ? keys_.key_offsets() + run.first_key : nullptr;
    arguments.key_pitch = pitch;
    arguments.key_step = kIsShifted ? keys_.pitch() : 1;
    arguments.rows = 1;
    for (int r = run.first, rows; r < run.last; r += rows) {
      rows = LogitsTable<kLayout, D>::take_rows(run.last - r);
      arguments.queries = tile(from, r, pitch);
      for (int i = 0; i < rows; ++i) {
        arguments.weights[i] = tile(to, r + i, plan_.weights_pitch) +
                               ptrdiff_t{run.slots[static_cast<size_t>(r + i)]} * kLanes;
      }
      LogitsTable<kLayout, D>::run(rows, /*twins=*/1, run.count, arguments);
    }
  }

  // Elements of the tables of all heads before the entry that BiasEntries counts from.
  ptrdiff_t bias_table(const Run& run, const Row& row) const {
    const Place& place = row.place;
    return ptrdiff_t{place.head} * plan_.bias.size() +
           bias_entry(plan_.bias, run.z - keys_.axis(0).position(place.z),
                      run.y - keys_.axis(1).position(place.k));
  }

  void add_bias(const Run& run, const Rows& rows) const {
    for (int r = run.first; r < run.last; ++r) {
      const Row& row = rows[static_cast<size_t>(r)];
      row.bias.add(scratch_ + plan_.scratch.bias + bias_table(run, row), run.first_key, run.count,
                   /*twin=*/0,
                   probabilities(r) + ptrdiff_t{run.slots[static_cast<size_t>(r)]} * kLanes);
    }
  }

  // Gradients of the logits of row r, to the sums of their entries.
  void add_to_bias(const Row& row, int r) const {
    const auto sees = [&](int lane, int key) {
      return row.views[static_cast<size_t>(lane)].sees(key);
    };
    for (int i = 0; i < num_runs_; ++i) {
      const Run& run = runs_[static_cast<size_t>(i)];
      if (!run.is_window || !run.is_seen_by(r)) continue;
      const T* gradients = grad_logits(r) + ptrdiff_t{run.slots[static_cast<size_t>(r)]} * kLanes;
      T* sums = scratch_ + plan_.scratch.bias_sums + bias_table(run, row) * kLanes;
      if (row.is_masked) {
        row.bias.add_seen_gradients(gradients, run.first_key, run.count, sees, sums);
      } else {
        row.bias.add_gradients(gradients, run.first_key, run.count, sums);
      }
    }
  }

  void keep_bias_sums() const {
    const T* sums = scratch_ + plan_.scratch.bias_sums;
    for (size_t entry = 0; entry < plan_.bias_sums_size; ++entry, sums += kLanes) {
      bias_sums_[entry] = std::accumulate(sums, sums + kLanes, T{0});
    }
  }

  // Turns the products of all runs into probabilities and gradients of logits, and adds those to
  // the sums of queries and keys.
  void flush(Rows* rows, int num_rows) {
    if (num_runs_ == 0) return;
    // One array of the tile after the other: all of them do not fit L1.
    for (int i = 0; i < num_runs_; ++i) {
      const Run& run = runs_[static_cast<size_t>(i)];
      add_products(run, run.value_columns, plan_.head_dim_value, plan_.value_pitch,
                   plan_.scratch.transposed_grad_outputs, plan_.scratch.grad_logits);
      fetches_.advance(run.num_slots());
    }
    const QuerySums<Element> query_sums = this->query_sums();
    for (int r = 0; r < num_rows; ++r) {
      Row& row = (*rows)[static_cast<size_t>(r)];
      softmax_gradient(row, r);
      fetches_.advance(row.slots);
      if (grad_query_ != nullptr) query_sums.add(runs_.data(), num_runs_, &row, r);
      if (plan_.grad_bias.given) add_to_bias(row, r);
      row.slots = 0;
    }
    const KeySums<Element> key_sums(plan_, lane_axis(), scratch_);
    for (int i = 0; i < num_runs_; ++i) {
      const Run& run = runs_[static_cast<size_t>(i)];
      if ((run.is_window ? pointers_.grad_key : pointers_.grad_additional_key) != nullptr) {
        key_sums.add(run, *rows, plan_.scratch.queries, plan_.scratch.grad_logits, plan_.key_pitch,
                     run.key_sums);
      }
      fetches_.advance(run.num_slots());
    }
    for (int i = 0; i < num_runs_; ++i) {
      const Run& run = runs_[static_cast<size_t>(i)];
      if ((run.is_window ? pointers_.grad_value : pointers_.grad_additional_value) != nullptr) {
        key_sums.add(run, *rows, plan_.scratch.grad_outputs, plan_.scratch.probabilities,
                     plan_.value_pitch, run.value_sums);
      }
      fetches_.advance(run.num_slots());
    }
    num_runs_ = 0;
  }

  void softmax_gradient(const Row& row, int r) const {
    const ptrdiff_t size = ptrdiff_t{row.slots} * kLanes;
    T *p = probabilities(r), *s = grad_logits(r);
    auto sums = row.softmax.exponentiate(size, p, s);
    if (row.is_masked) {
      for (int i = 0; i < num_runs_; ++i) hide(runs_[static_cast<size_t>(i)], row, r);
      sums = RowSoftmax<D>::add_up(size, p, s);
    }
    row.softmax.differentiate(size, is_whole_, sums, p, s);
  }

  // Probability 0, and no NaN to multiply it with, for keys that a lane does not see.
  void hide(const Run& run, const Row& row, int r) const {
    if (!run.is_seen_by(r)) return;
    const ptrdiff_t first = ptrdiff_t{run.slots[static_cast<size_t>(r)]} * kLanes;
    T* p = probabilities(r) + first;
    T* s = grad_logits(r) + first;
    for_each_hidden(run, row, [&](ptrdiff_t i) { p[i] = s[i] = 0; });
  }

  // body(index) of the keys of a run, a vector each, that a lane does not see.
  template <class Body>
  static void for_each_hidden(const Run& run, const Row& row, const Body& body) {
    if (!run.is_window) return;
    for (int j = 0; j < run.count; ++j) {
      for (int lane = 0; lane < kLanes; ++lane) {
        if (row.views[static_cast<size_t>(lane)].sees(run.first_key + j)) continue;
        body(ptrdiff_t{j} * kLanes + lane);
      }
    }
  }

  // Gradients of the keys at planes x rows.
  void write_rows(const KeyGradients<Element>& gradients, const KeyRange& planes,
                  const KeyRange& rows) const {
    const auto box = static_cast<int>(&box_ - plan_.boxes.data());  // one a combination
    for (int z = planes.begin; z < planes.end; ++z) {
      for (int y = rows.begin; y < rows.end; ++y) {
        gradients.write_slice({box, z, y, 0, lane_axis().window.extent}, sums_);
      }
    }
  }

  const BackwardPointers& pointers_;
  const KeyLayout layout_;
  const Element *output_, *grad_output_;
  const LseType *lse_, *grad_lse_;
  Element* grad_query_;
  bool streams_grad_query_;
  T *sums_, *additional_sums_, *bias_sums_;
  Element *grad_key_, *grad_value_;
  const bool starts_sums_;  // the first tile that sees a key does, instead of adding to zeros
  Ahead fresh_ = {}, reads_ = {}, writes_ = {};
  NextTile next_ = {};
  Fetches<kFetch> fetches_;
  bool is_whole_ = false;  // the tile holds all keys of its queries
  int num_runs_ = 0;
  std::array<Run, kMaxRuns> runs_;
};

template <typename Element>
void run_backward_unit(const BackwardPlan& plan, const BackwardPointers& pointers, int64_t unit,
                       void* scratch) {
  if (plan.matrix.is_used()) return plan.matrix.run(plan, pointers, unit, scratch);
  BackwardUnit<Element>(plan, pointers, unit, scratch).run();
}

template <typename Element>
BackwardKernel make_backward_kernel() {
  using T = typename ComputeType<Element>::type;
  return {&run_clear_unit<Element>,
          &run_backward_unit<Element>,
          &run_gather_unit<Element>,
          static_cast<int>(hn::Lanes(hn::ScalableTag<T>())),
          sizeof(T),
          hwy::TargetName(HWY_TARGET)};
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_BACKWARD_INL_H_
