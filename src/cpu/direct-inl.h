// SPDX-License-Identifier: MIT
// Walks one unit of the direct form: packs keys and values as rows, or reads them where they lie,
// then blocks of neighbouring queries, each with its own window.
// Part of each forward_*.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_DIRECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_DIRECT_INL_H_
#undef VECINA_CPU_DIRECT_INL_H_
#else
#define VECINA_CPU_DIRECT_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/bias-inl.h"
#include "cpu/direct_tile-inl.h"
#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <typename Element>
class DirectUnit {
 public:
  using T = typename ComputeType<Element>::type;
  using D = hn::CappedTag<T, kMaxDirectLanes>;
  using LseType = T;

  DirectUnit(const ForwardPlan& plan, const ForwardPointers& pointers, int64_t unit, void* scratch)
      : plan_(plan), pointers_(pointers), scratch_(static_cast<T*>(scratch)) {
    const auto num_boxes = static_cast<int64_t>(plan.boxes.size());
    const int64_t groups = plan.heads_kv / plan.heads_at_once;
    box_ = plan.boxes[static_cast<size_t>(unit % num_boxes)];
    batch_ = unit / num_boxes / groups;
    first_head_ = unit / num_boxes % groups * plan.heads_at_once;
    for (size_t a = 0; a < kRank; ++a) {
      axes_[a] = &plan.groups[a][static_cast<size_t>(box_.group[a])];
      ranges_[a] = a + 1 < kRank ? key_range(*axes_[a], box_.begin[a], box_.end[a])
                                 : direct_key_range(*axes_[a], box_.begin[a], box_.end[a]);
    }
    block_.row_keys = row_axis().window.kernel_size;
    block_.weights = scratch_ + direct().weights;
    block_.weights_pitch = direct().weights_pitch;
    block_.key_rows = reinterpret_cast<const int64_t*>(scratch_ + direct().key_rows);
    block_.value_rows = reinterpret_cast<const int64_t*>(scratch_ + direct().value_rows);
    block_.row_slots = reinterpret_cast<const int*>(scratch_ + direct().row_slots);
    if (direct().in_place) {
      block_.key_stride = plan.key.token[2] * row_axis().token_step;
      block_.value_stride = plan.value.token[2] * row_axis().token_step;
    } else {
      block_.key_stride = plan.key_pitch;
      block_.value_stride = plan.value_pitch;
    }
  }

  void run() {
    if (plan_.bias.given) {
      const int64_t head = first_head_ * plan_.head_group;
      pack_bias(plan_.bias, plan_.heads_at_once * plan_.head_group, static_cast<T>(kLog2E),
                static_cast<const T*>(pointers_.bias) + head * plan_.bias.head,
                scratch_ + direct().bias);
    }
    if (direct().one_row) {
      // Heads innermost: neighbouring tokens' heads are neighbours in memory.
      for (int z = box_.begin[0]; z < box_.end[0]; ++z) {
        for (int y = box_.begin[1]; y < box_.end[1]; ++y) {
          find_rows(z, y);
          for (int x = box_.begin[2]; x < box_.end[2]; x += direct().block_queries) {
            find_windows(x);
            find_queries(x, z, y);
            for (int h = 0; h < plan_.heads_at_once; ++h) {
              choose_head(first_head_ + h);
              if (!direct().in_place) pack_block();
              head_of_unit_ = h * plan_.head_group;
              for (int g = 0; g < plan_.head_group; ++g) run_block(g);
            }
            write_lse();
          }
        }
      }
      return;
    }
    for (int h = 0; h < plan_.heads_at_once; ++h) {
      choose_head(first_head_ + h);
      pack();
      // Columns of blocks: the next row of queries finds most keys in L1.
      for (int x = box_.begin[2]; x < box_.end[2]; x += direct().block_queries) {
        find_windows(x);
        for (int z = box_.begin[0]; z < box_.end[0]; ++z) {
          for (int y = box_.begin[1]; y < box_.end[1]; ++y) {
            find_rows(z, y);
            find_queries(x, z, y);
            for (int g = 0; g < plan_.head_group; ++g) {
              if (y + 1 < box_.end[1]) prefetch_block(x, z, y + 1, g);
              run_block(g);
            }
            write_lse();
          }
        }
      }
    }
  }

 private:
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  static constexpr int kMaxQueries = DirectBlock<D>::kMaxQueries;
  // Queries whose values are loaded once for all of them, at most.
  static constexpr int kMostTogether = kHasWideVectors ? 4 : 2;
  // Rows that do not fill vectors, where they lie.
  static constexpr bool kReadsParts = kHasMaskedLoads && std::is_same_v<Element, T>;
  static constexpr int kTokensAhead = 8;  // that are fetched while those before are packed
  static constexpr double kLog2E = 1.44269504088896340736;

  // Neighbouring queries whose values are summed up in the same way.
  struct Run {
    enum Kind { same, shifted, single } kind;
    int length;  // that share loads
    int first, last;
  };

  const DirectForm& direct() const { return plan_.direct; }
  const AxisGroup& row_axis() const { return *axes_[2]; }
  int64_t packed_row(int z, int y) const {
    return int64_t{z - ranges_[0].begin} * ranges_[1].size() + (y - ranges_[1].begin);
  }
  // Of position 0 in the row of keys at (z, y).
  int64_t row_offset(const Strides& strides, int z, int y) const {
    return token_offset(strides, axes_[0]->to_token(z), axes_[1]->to_token(y)) +
           int64_t{row_axis().token} * strides.token[2];
  }

  void choose_head(int64_t head_kv) {
    const int64_t head = head_kv * plan_.head_group;
    query_ = tensor_at<const Element>(pointers_.query, plan_.query, batch_, head);
    key_ = tensor_at<const Element>(pointers_.key, plan_.key, batch_, head_kv);
    value_ = tensor_at<const Element>(pointers_.value, plan_.value, batch_, head_kv);
    output_ = tensor_at<Element>(pointers_.output, plan_.output, batch_, head);
    if (plan_.has_lse) lse_ = tensor_at<LseType>(pointers_.lse, plan_.lse, batch_, head);
    if (plan_.additional_tokens > 0) find_additional(head_kv);
  }

  void find_additional(int64_t head_kv) {
    const auto* keys =
        tensor_at<const Element>(pointers_.additional_key, plan_.additional_key, batch_, head_kv);
    const auto* values = tensor_at<const Element>(pointers_.additional_value,
                                                  plan_.additional_value, batch_, head_kv);
    if constexpr (std::is_same_v<T, Element>) {
      if (direct().in_place) {
        additional_keys_ = keys;
        additional_values_ = values;
        additional_key_pitch_ = plan_.additional_key.token[2];
        additional_value_pitch_ = plan_.additional_value.token[2];
        return;
      }
    }
    T* packed_keys = scratch_ + direct().additional_keys;
    T* packed_values = scratch_ + direct().additional_values;
    pack_rows(keys, plan_.additional_key.token[2], plan_.additional_tokens, plan_.head_dim,
              plan_.key_pitch, packed_keys);
    pack_rows(values, plan_.additional_value.token[2], plan_.additional_tokens,
              plan_.head_dim_value, plan_.value_pitch, packed_values);
    additional_keys_ = packed_keys;
    additional_values_ = packed_values;
    additional_key_pitch_ = plan_.key_pitch;
    additional_value_pitch_ = plan_.value_pitch;
  }

  // True if rows of `size` elements are taken in wide vectors, an even number of them.
  static bool is_wide(int size) { return kHasWideVectors && size % (4 * kLanes) == 0; }

  static void pack_rows(const Element* from, int64_t stride, int64_t count, int size, int pitch,
                        T* to) {
    for (int64_t i = 0; i < count; i += kTokensAhead) {
      const int64_t some = std::min<int64_t>(kTokensAhead, count - i);
      for (int64_t k = i; k < i + some; ++k) prefetch(from + (k + kTokensAhead) * stride, size);
      const auto copy = [&](auto d) {
        copy_rows_in_pairs(d, from + i * stride, stride, some, static_cast<size_t>(size),
                           static_cast<size_t>(pitch), to + i * pitch);
      };
      is_wide(size) ? copy(Wide<D>()) : copy(D());
    }
  }

  void pack() {
    const int count = ranges_[2].size(), first = ranges_[2].begin;
    const int64_t key_stride = plan_.key.token[2] * row_axis().token_step;
    const int64_t value_stride = plan_.value.token[2] * row_axis().token_step;
    for (int z = ranges_[0].begin; z < ranges_[0].end; ++z) {
      for (int y = ranges_[1].begin; y < ranges_[1].end; ++y) {
        pack_rows(key_ + row_offset(plan_.key, z, y) + first * key_stride, key_stride, count,
                  plan_.head_dim, plan_.key_pitch,
                  scratch_ + direct().keys + packed_row(z, y) * direct().key_row);
        pack_rows(value_ + row_offset(plan_.value, z, y) + first * value_stride, value_stride,
                  count, plan_.head_dim_value, plan_.value_pitch,
                  scratch_ + direct().values + packed_row(z, y) * direct().value_row);
      }
    }
  }

  // What the queries of a block see, of the one row that there is.
  void pack_block() const {
    const int64_t count =
        block_.key_offsets[block_.num_queries - 1] / block_.key_stride + block_.row_keys;
    const int64_t key_stride = plan_.key.token[2] * row_axis().token_step;
    const int64_t value_stride = plan_.value.token[2] * row_axis().token_step;
    pack_rows(key_ + row_axis().to_token(begin_) * plan_.key.token[2], key_stride, count,
              plan_.head_dim, plan_.key_pitch, scratch_ + direct().keys);
    pack_rows(value_ + row_axis().to_token(begin_) * plan_.value.token[2], value_stride, count,
              plan_.head_dim_value, plan_.value_pitch, scratch_ + direct().values);
  }

  int keys_seen(int position) const {
    const AxisGroup& axis = row_axis();
    return axis.window.is_causal
               ? std::min(axis.end(position), axis.window.extent) - axis.begin(position)
               : block_.row_keys;
  }

  // The windows of the queries from x on, and how their values are summed up.
  void find_windows(int x) {
    const AxisGroup& axis = row_axis();
    const int num_queries = std::min(direct().block_queries, box_.end[2] - x);
    const int first = axis.position(x), last = axis.position(x + num_queries - 1);
    begin_ = axis.begin(first);
    // Away from the borders all blocks are alike.
    const bool was_plain = is_plain_;
    is_plain_ = axis.window.stride == 1 && axis.begin(last) - begin_ == last - first &&
                keys_seen(first) == block_.row_keys && keys_seen(last) == block_.row_keys;
    if (is_plain_ && was_plain && num_queries == block_.num_queries) return;
    block_.num_queries = num_queries;
    is_masked_ = false;
    for (int t = 0; t < num_queries; ++t) {
      const int p = axis.position(x + t);
      begins_[t] = axis.begin(p);
      counts_[t] = keys_seen(p);
      apart_[t] = begins_[t] - p;
      is_masked_ = is_masked_ || counts_[t] != block_.row_keys;
      block_.key_offsets[t] = (begins_[t] - begin_) * block_.key_stride;
      block_.value_offsets[t] = (begins_[t] - begin_) * block_.value_stride;
    }
    num_runs_ = 0;
    // The windows of that many queries from t on, whole ones, are `shift` keys apart.
    const auto are_apart = [&](int t, int count, int shift) {
      const int keys = kHasWideVectors ? count : count - 1;  // that direct_together() needs
      if (t + count > num_queries || (shift > 0 && block_.row_keys < keys)) return false;
      for (int i = 0; i < count; ++i) {
        if (counts_[t + i] != block_.row_keys || begins_[t + i] != begins_[t] + i * shift) {
          return false;
        }
      }
      return true;
    };
    for (int t = 0, length; t < num_queries; t += length) {
      auto kind = Run::single;
      length = 1;
      // Blocks begin at even places, so where boxes are cut does not change who stands alone.
      for (int count : {kMostTogether, 2}) {
        if (t % 2 != 0 || length > 1) continue;
        if (are_apart(t, count, 0)) kind = Run::same;
        if (are_apart(t, count, 1)) kind = Run::shifted;
        if (kind != Run::single) length = count;
      }
      // Between pairs near both borders of a short downsampled axis windows may be further apart.
      const bool follows = kind != Run::shifted || (t > 0 && begins_[t] == begins_[t - 1] + 1);
      if (num_runs_ > 0 && runs_[num_runs_ - 1].kind == kind &&
          runs_[num_runs_ - 1].length == length && follows) {
        runs_[num_runs_ - 1].last += length;
      } else {
        runs_[num_runs_++] = {kind, length, t, t + length};
      }
    }
  }

  // The rows of keys of the queries at (z, y).
  void find_rows(int z, int y) {
    if (z == rows_of_z_ && y == rows_of_y_) return;
    rows_of_z_ = z;
    rows_of_y_ = y;
    auto* key_rows = reinterpret_cast<int64_t*>(scratch_ + direct().key_rows);
    auto* value_rows = reinterpret_cast<int64_t*>(scratch_ + direct().value_rows);
    const int position_z = axes_[0]->position(z), position_y = axes_[1]->position(y);
    const int end_z = std::min(axes_[0]->end(position_z), axes_[0]->window.extent);
    const int end_y = std::min(axes_[1]->end(position_y), axes_[1]->window.extent);
    int rows = 0;
    for (int key_z = axes_[0]->begin(position_z); key_z < end_z; ++key_z) {
      for (int key_y = axes_[1]->begin(position_y); key_y < end_y; ++key_y, ++rows) {
        if (direct().in_place) {
          key_rows[rows] = row_offset(plan_.key, key_z, key_y);
          value_rows[rows] = row_offset(plan_.value, key_z, key_y);
        } else {
          key_rows[rows] = packed_row(key_z, key_y) * direct().key_row;
          value_rows[rows] = packed_row(key_z, key_y) * direct().value_row;
        }
      }
    }
    if (rows == block_.num_rows) return;
    block_.num_rows = rows;
    grouped_ = rows - rows % direct().grouped_rows;
    slots_ = direct_slots(block_.row_keys, rows, direct().grouped_rows, kLanes,
                          reinterpret_cast<int*>(scratch_ + direct().row_slots));
  }

  // Where the first query of the block at (z, y, x) lies in each tensor, from its head's beginning.
  int64_t query_offset(int x, int z, int y) const {
    return token_offset(plan_.query, axes_[0]->query_token(z, 0), axes_[1]->query_token(y, 0)) +
           row_axis().query_token(x, 0) * plan_.query.token[2];
  }
  int64_t output_offset(const Strides& strides, int x, int z, int y) const {
    return token_offset(strides, axes_[0]->output_token(z, 0), axes_[1]->output_token(y, 0)) +
           row_axis().output_token(x, 0) * strides.token[2];
  }
  void find_queries(int x, int z, int y) {
    query_offset_ = query_offset(x, z, y);
    output_offset_ = output_offset(plan_.output, x, z, y);
    if (plan_.has_lse) lse_offset_ = output_offset(plan_.lse, x, z, y);
  }
  int64_t query_step() const {
    return plan_.query.token[2] * row_axis().token_step * row_axis().step;
  }

  // What the block at (z, y, x), further down the column, reads and writes of one head.
  void prefetch_block(int x, int z, int y, int head) const {
    const Element* query = query_ + head * plan_.query.head + query_offset(x, z, y);
    const Element* output =
        output_ + head * plan_.output.head + output_offset(plan_.output, x, z, y);
    const int64_t output_step = plan_.output.token[2] * row_axis().output_step;
    for (int t = 0; t < block_.num_queries; ++t) {
      prefetch(query + t * query_step(), plan_.head_dim);
      prefetch(output + t * output_step, plan_.head_dim_value);
    }
  }

  void run_block(int head) {
    const D d;
    const AxisGroup& axis = row_axis();
    const int packed = direct().one_row ? begin_ : ranges_[2].begin;  // the first one
    const ptrdiff_t begin = begin_ - (direct().in_place ? 0 : packed);
    if (direct().in_place) {
      block_.keys = key_ + begin * block_.key_stride;
      block_.values = value_ + begin * block_.value_stride;
    } else {
      block_.keys = scratch_ + direct().keys + begin * block_.key_stride;
      block_.values = scratch_ + direct().values + begin * block_.value_stride;
    }
    logits(query_ + head * plan_.query.head + query_offset_, query_step());
    if (plan_.bias.given) add_bias(head_of_unit_ + head);
    if (is_masked_) hide();
    T* additional = scratch_ + direct().additional_weights;
    if (waiting_ == kLanes) write_lse();
    DirectSoftmax<D>& softmax = softmaxes_[waiting_];
    direct_softmax(d, block_, slots_, plan_.additional_tokens, additional, &softmax);
    if (plan_.has_lse) {
      if (waiting_ == 0) waiting_lse_ = lse_ + head * plan_.lse.head + lse_offset_;
      ++waiting_;
    }
    const DirectOutput<T, Element> target = {softmax.inverse,
                                             additional,
                                             additional_values_,
                                             additional_value_pitch_,
                                             plan_.additional_tokens,
                                             output_ + head * plan_.output.head + output_offset_,
                                             plan_.output.token[2] * axis.output_step,
                                             plan_.head_dim_value};
    ptrdiff_t column = 0;
    if constexpr (kHasWideVectors) {
      if (is_wide(plan_.head_dim_value)) {
        for (; column < plan_.head_dim_value; column += 4 * kLanes) {
          if constexpr (std::is_same_v<Element, bfloat16>) {
            if (direct().in_place) {
              sum_values<2, Element>(Wide<D>(), target, column);
              continue;
            }
          }
          sum_values<2, T>(Wide<D>(), target, column);
        }
        return;
      }
    }
    for (; column + 4 * kLanes <= plan_.head_dim_value; column += 4 * kLanes) {
      sum_values<4, T>(d, target, column);
    }
    if constexpr (kReadsParts) {
      if (direct().in_place && plan_.head_dim_value % kLanes != 0) {
        constexpr ptrdiff_t kWide = hn::MaxLanes(Wide<D>());
        for (; column + kWide <= plan_.head_dim_value; column += kWide) {
          sum_values<kWide / kLanes, T>(d, target, column);
        }
        sum_values<1, T, /*kIsPart=*/true>(Wide<D>(), target, column);
        return;
      }
    }
    if constexpr (std::is_same_v<Element, bfloat16>) {
      if (column + 2 * kLanes <= plan_.head_dim_value) {
        sum_values<2, T>(d, target, column);
        column += 2 * kLanes;
      }
    }
    for (; column < plan_.head_dim_value; column += kLanes) sum_values<1, T>(d, target, column);
  }

  // lse of the heads of a block that wait for it, which follow each other: logarithms by whole
  // vectors, and where heads are neighbours in memory, all of one token at once.
  void write_lse() {
    if (waiting_ == 0) return;
    const Wide<D> wide;
    constexpr int kWide = static_cast<int>(hn::MaxLanes(wide));
    HWY_ALIGN T lse[kLanes * kMaxQueries];
    for (int head = 0; head < waiting_; ++head) {
      const DirectSoftmax<D>& softmax = softmaxes_[head];
      for (int t = 0; t < block_.num_queries; t += kWide) {
        hn::Store(log_sum_exp(wide, {hn::LoadU(wide, softmax.maxima + t),
                                     hn::LoadU(wide, softmax.sums + t)}),
                  wide, lse + head * kMaxQueries + t);
      }
    }
    const ptrdiff_t stride = plan_.lse.token[2] * row_axis().output_step;
    int head = 0;
    if (plan_.lse.head == 1 && stride > 0) {
      const auto transpose = [&](auto lanes) {
        constexpr int kHeads = static_cast<int>(hn::MaxLanes(lanes));
        for (; head + kHeads <= waiting_; head += kHeads) {
          transpose_rows(lanes, RegularRows<T>(lse + head * kMaxQueries, kMaxQueries),
                         static_cast<size_t>(block_.num_queries), static_cast<size_t>(stride),
                         Unscaled(), waiting_lse_ + head);
        }
      };
      transpose(D());
      transpose(hn::CappedTag<T, 4>());
    }
    for (; head < waiting_; ++head) {
      for (int t = 0; t < block_.num_queries; ++t) {
        waiting_lse_[head * plan_.lse.head + t * stride] = lse[head * kMaxQueries + t];
      }
    }
    waiting_ = 0;
  }

  void logits(const Element* query, ptrdiff_t query_stride) {
    if constexpr (std::is_same_v<T, Element>) {
      if (direct().in_place || plan_.head_dim == plan_.key_pitch) {
        return packed_logits(query, query_stride);
      }
    }
    if constexpr (std::is_same_v<Element, bfloat16>) {
      if (direct().in_place) {
        for (int j = 0; j < block_.row_keys; j += kLanes) {
          direct_dots(std::min(kLanes, block_.row_keys - j), plan_.head_dim)(
              block_, {query, query_stride, plan_.head_dim, j, 0, block_.num_rows, scale()});
        }
        return;
      }
      if (plan_.head_dim == kHeldVectors * kLanes && plan_.additional_tokens == 0) {
        return row_logits(query, query_stride);
      }
    }
    T* queries = scratch_ + direct().queries;
    pack_rows(query, query_stride, block_.num_queries, plan_.head_dim, plan_.key_pitch, queries);
    packed_logits(queries, plan_.key_pitch);
  }

  // Of queries that fill whole vectors, or that are read as keys are.
  void packed_logits(const T* query, ptrdiff_t query_stride) {
    row_logits(query, query_stride);
    if (plan_.additional_tokens == 0) return;
    for (int t = 0; t < block_.num_queries; t += kLanes) {
      direct_additional_logits(D(), query + t * query_stride, query_stride,
                               std::min(kLanes, block_.num_queries - t), plan_.key_pitch / kLanes,
                               additional_keys_, additional_key_pitch_, plan_.additional_tokens,
                               scale(), scratch_ + direct().additional_weights + t);
    }
  }

  // Of the rows of keys.
  template <typename Query>
  void row_logits(const Query* query, ptrdiff_t query_stride) {
    const int size = direct().in_place ? plan_.head_dim : plan_.key_pitch;
    const auto rows = [&](int first_key, int first_row, int last_row, bool in_groups) {
      if (first_row == last_row) return;
      const int keys = std::min(kLanes, block_.row_keys - first_key);
      direct_logits<Query>(keys, in_groups, size)(
          block_, {query, query_stride, size, first_key, first_row, last_row, scale()});
    };
    for (int j = 0; j < block_.row_keys; j += kLanes) {
      rows(j, 0, grouped_, direct().grouped_rows > 1);
      rows(j, grouped_, block_.num_rows, false);
    }
  }
  T scale() const { return static_cast<T>(plan_.scale * kLog2E); }

  // To the logits of the one row of keys.
  void add_bias(int head) {
    const D d;
    const T* table = scratch_ + direct().bias + head * plan_.bias.size() + plan_.bias.sizes[2] / 2;
    for (int j = 0; j < block_.row_keys; j += kLanes) {
      // Behind a table lies another head's, which may hold anything.
      const auto is_key = hn::FirstN(d, static_cast<size_t>(block_.row_keys - j));
      T* weights = block_.weights + j;
      for (int t = 0; t < block_.num_queries; ++t, weights += block_.weights_pitch) {
        const auto bias = hn::IfThenElseZero(is_key, hn::LoadU(d, table + apart_[t] + j));
        hn::Store(hn::Add(hn::Load(d, weights), bias), d, weights);
      }
    }
  }

  // Keys of a row behind those that a query sees.
  void hide() {
    for (int t = 0; t < block_.num_queries; ++t) {
      T* weights = block_.weights + t * block_.weights_pitch;
      for (int row = 0; row < block_.num_rows; ++row) {
        std::fill(weights + block_.row_slots[row] + counts_[t],
                  weights + block_.row_slots[row] + block_.row_keys, -hwy::HighestValue<T>() * 2);
      }
    }
  }

  template <size_t kVectors, typename Stored, bool kIsPart = false, class W>
  void sum_values(W w, const DirectOutput<T, Element>& target, ptrdiff_t column) {
    for (int i = 0; i < num_runs_; ++i) {
      const Run& run = runs_[i];
      if constexpr (kHasWideVectors && std::is_same_v<W, Wide<D>>) {
        const int keys = block_.row_keys;
        if (run.kind == Run::shifted && keys <= kMostRolling && run.last - run.first >= keys) {
          rolling_of<kVectors, kIsPart, Stored, D, W, Element>(keys)(D(), w, block_, target,
                                                                     run.first, run.last, column);
          continue;
        }
      }
      const auto sum = [&](auto shift) {
        auto* together =
            run.length == 2
                ? &direct_together<shift, 2, kVectors, kIsPart, Stored, D, W, Element>
                : &direct_together<shift, kMostTogether, kVectors, kIsPart, Stored, D, W, Element>;
        together(D(), w, block_, target, run.first, run.last, column);
      };
      if (run.kind == Run::same) {
        sum(std::integral_constant<int, 0>());
      } else if (run.kind == Run::shifted) {
        sum(std::integral_constant<int, 1>());
      } else {
        for (int t = run.first; t < run.last; ++t) {
          direct_single<kVectors, kIsPart, Stored>(D(), w, block_, target, t, counts_[t], column);
        }
      }
    }
  }

  const ForwardPlan& plan_;
  const ForwardPointers& pointers_;
  T* scratch_;
  Box box_;
  int64_t batch_, first_head_;
  std::array<const AxisGroup*, kRank> axes_;
  std::array<KeyRange, kRank> ranges_;
  const Element *query_, *key_, *value_;
  int64_t query_offset_, output_offset_, lse_offset_ = 0;
  Element* output_;
  LseType* lse_ = nullptr;
  const T *additional_keys_, *additional_values_;
  ptrdiff_t additional_key_pitch_, additional_value_pitch_;
  DirectBlock<D> block_ = {};
  int slots_ = 0;    // of weights of one query
  int grouped_ = 0;  // rows whose logits are computed in groups
  int rows_of_z_ = -1, rows_of_y_ = -1;
  bool is_masked_ = false, is_plain_ = false;
  int begin_ = 0;                                  // of the first query's window
  int begins_[kMaxQueries], counts_[kMaxQueries];  // of keys in a row that each query sees
  int apart_[kMaxQueries];                         // the first of them from the query
  int head_of_unit_ = 0;                           // the first of a key head
  Run runs_[kMaxQueries];
  int num_runs_ = 0;
  DirectSoftmax<D> softmaxes_[kLanes] = {};  // of heads whose lse is not written yet
  LseType* waiting_lse_ = nullptr;           // of the first of them
  int waiting_ = 0;
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_DIRECT_INL_H_
