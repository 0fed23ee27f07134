// SPDX-License-Identifier: MIT
// The keys and values that a unit reads, packed row by row into its scratch: one after the other
// for sums along head_dim, and for products with lanes of queries transposed (shifted layout;
// forward's matrix form: either). Part of each forward_*.cc, of backward.cc and of matrix.cc;
// compiled once for every instruction set.
#if defined(VECINA_CPU_PACKED_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_PACKED_KEYS_INL_H_
#undef VECINA_CPU_PACKED_KEYS_INL_H_
#else
#define VECINA_CPU_PACKED_KEYS_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/forward.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Packs rows for the queries of one box. Where they go is the caller's: it keeps so many rows of
// `transposed_row` or of tokens * pitch elements as the box's ring has, and finds them by row().
template <typename Element>
class PackedKeys {
 public:
  using T = typename ComputeType<Element>::type;
  using D = hn::ScalableTag<T>;

  PackedKeys(const Partition& plan, size_t box, T* scratch)
      : axes_(BoxKeys(plan, box).axes),
        packed_(plan.packed[box]),
        layout_(key_layout(lane_axis())),
        first_query_(plan.boxes[box].begin[2]),
        zeros_(reinterpret_cast<const Element*>(scratch + plan.packed_scratch.zeros)),
        positions_(reinterpret_cast<int*>(scratch + plan.packed_scratch.positions)),
        key_offsets_(reinterpret_cast<int64_t*>(scratch + plan.packed_scratch.key_offsets)) {
    std::fill_n(scratch + plan.packed_scratch.zeros, plan.packed_scratch.num_zeros, T{0});
    find_keys();
  }

  const PackedBox& box() const { return packed_; }
  const AxisGroup& axis(size_t a) const { return *axes_[a]; }
  const AxisGroup& lane_axis() const { return *axes_[2]; }
  const KeyRange& range(size_t a) const { return packed_.ranges[a]; }
  const PackedRing& ring() const { return packed_.ring; }
  KeyLayout layout() const { return layout_; }
  // Packed tokens of one row.
  int tokens() const { return range(2).size(); }

  // The packed row that holds the given outer positions.
  ptrdiff_t row(int z, int y) const { return packed_.ring_row(z, y); }
  // How many of the rows of keys from y on are packed one after the other.
  int rows_together(int y) const {
    const int from = y - range(1).begin;
    return ring().axis == 0 ? range(1).size() - from : ring().rows - from % ring().rows;
  }

  // Of transposed rows: elements of one, if a key or value has `size`; of one entry of all its
  // columns; where each key of a window lies; and where those of the queries at x begin.
  ptrdiff_t transposed_row(int size) const { return packed_.runs.row(size); }
  int pitch() const { return packed_.runs.pitch; }
  const int64_t* key_offsets() const { return key_offsets_; }
  ptrdiff_t column(int x, int size) const {
    const int lane = (x - first_query_) / lane_axis().twins;
    return packed_.runs.strips == 0 ? lane : ptrdiff_t{lane / kLanes} * pitch() * size;
  }

  // Of position 0 in the row of keys at (z, y), in a tensor of keys or values.
  int64_t row_offset(const Strides& strides, int z, int y) const {
    return token_offset(strides, axis(0).to_token(z), axis(1).to_token(y)) +
           lane_axis().token * strides.token[2];
  }

  // What stands at position p of the packed rows; zeros where nothing does. `row`: position 0.
  const Element* token(const Element* row, const Strides& strides, int p) const {
    return row_at(row, position_stride(strides), p);
  }
  const Element* zeros() const { return zeros_; }
  // Fetches `size` elements of up to `count` tokens from position p on, as many as the box has.
  void fetch(const Element* row, const Strides& strides, int p, int count, int size) const {
    prefetch_tokens(row, position_stride(strides), p, count, 1, size);
  }

  // Tokens [begin, end) of a row's, `size` elements of each and zeros up to `pitch`. `from`:
  // position 0; `to`: of token 0.
  void copy(const Element* from, const Strides& strides, int begin, int end, int size, int pitch,
            T* to) const {
    const ptrdiff_t stride = position_stride(strides);
    to += ptrdiff_t{begin} * pitch;
    const int first = range(2).begin + begin, last = range(2).begin + end;
    const int inside = std::clamp(0, first, last);  // before and behind, tokens are elsewhere
    const int outside = std::clamp(lane_axis().window.extent, inside, last);
    const auto copy_each = [&](int from_position, int to_position) {
      for (int p = from_position; p < to_position; ++p, to += pitch) {
        copy_row(D(), row_at(from, stride, p), static_cast<size_t>(size),
                 static_cast<size_t>(pitch), to);
      }
    };
    copy_each(first, inside);
    for (int p = inside; p < outside; p += kLanes) {
      const int count = std::min(kLanes, outside - p);
      prefetch_tokens(from, stride, p + kLanes, std::min(kLanes, outside - p - kLanes), 1, size);
      copy_rows(D(), from + p * stride, stride, count, static_cast<size_t>(size),
                static_cast<size_t>(pitch), to);
      to += ptrdiff_t{count} * pitch;
    }
    copy_each(outside, last);
  }

#if HWY_TARGET == HWY_AVX3
  // All tokens of two rows of bfloat16 side by side, one of them in each half of an element.
  // nullptr: the second is not there yet.
  void copy_beside(const Element* first, const Element* second, const Strides& strides, int size,
                   int pitch, T* to) const {
    const ptrdiff_t stride = position_stride(strides);
    for (int p = range(2).begin; p < range(2).end; ++p, to += pitch) {
      if ((p - range(2).begin) % kLanes == 0) {
        prefetch_tokens(first, stride, p + kLanes, kLanes, 1, size);
        if (second != nullptr) prefetch_tokens(second, stride, p + kLanes, kLanes, 1, size);
      }
      const Element* beside = second == nullptr ? zeros_ : row_at(second, stride, p);
      copy_halves(D(), row_at(first, stride, p), beside, static_cast<size_t>(size),
                  static_cast<size_t>(pitch), to);
    }
  }
#endif

  // A row's tokens of bfloat16 as words of two elements each, `size` of them.
  void copy_words(const Element* from, const Strides& strides, int size, T* to) const {
    const ptrdiff_t stride = position_stride(strides);
    for (int p = range(2).begin; p < range(2).end; ++p, to += size) {
      copy_row(D(), reinterpret_cast<const T*>(row_at(from, stride, p)), static_cast<size_t>(size),
               static_cast<size_t>(size), to);
    }
  }

  // A row's tokens, transposed from where copy() put them: at equal distances, those beyond the
  // borders too. Without strips.
  void transpose_copied(const T* rows, int size, int pitch, T* to) const {
    const int runs = packed_.runs.num_runs;
    const ptrdiff_t step = ptrdiff_t{runs} * pitch;
    for (int run = 0; run < runs; ++run, rows += pitch, to += packed_.runs.columns) {
      const int columns = (tokens() - run + runs - 1) / runs;
      int column = 0;
      const auto transpose = [&](auto tag) HWY_ATTR {
        constexpr int kColumns = static_cast<int>(hn::MaxLanes(tag));
        const auto write = [&](const auto& of) VECINA_INLINE {
          transpose_rows(tag, of, static_cast<size_t>(size), static_cast<size_t>(this->pitch()),
                         Unscaled(), to + column);
        };
        if (column + kColumns <= columns) {
          write(RegularRows<T>(rows + column * step, step));
        } else {
          std::array<const T*, kColumns> last;  // may reach beyond the row
          for (int lane = 0; lane < kColumns; ++lane) {
            last[static_cast<size_t>(lane)] = rows + std::min(column + lane, columns - 1) * step;
          }
          write(ScatteredRows<T>{last.data()});
        }
        column += kColumns;
      };
      const hn::CappedTag<T, 4> few;
      constexpr int kFew = static_cast<int>(hn::MaxLanes(few));
      while (columns - column > kLanes / 2) transpose(D());
      if constexpr (kLanes > 2 * kFew) {
        while (columns - column > kFew) transpose(hn::CappedTag<T, 2 * kFew>());
      }
      while (column < columns) transpose(few);
    }
  }

  // A row's tokens, transposed; kInWords: `size` words of two elements each.
  template <bool kInWords = false>
  void transpose(const Element* from, const Strides& strides, int size, T* to) const {
    const KeyRuns& runs = packed_.runs;
    const ptrdiff_t stride = position_stride(strides);
    if (runs.strips == 0) {
      return transpose_strip<kInWords>(from, stride, size, range(2).begin, tokens(), to);
    }
    const int step = lane_axis().step, queries = kLanes * lane_axis().twins;
    const int count = step * (queries - 1) + lane_axis().window.kernel_size;
    // What a strip has beyond one vector begins the next strip too: transposed once.
    const int beyond = (count + runs.num_runs - 1) / runs.num_runs - kLanes;
    const bool ends_are_shared = beyond > 0 && beyond <= kLanes;
    for (int strip = 0; strip < runs.strips; ++strip) {
      T* const before = strip > 0 && ends_are_shared ? to - ptrdiff_t{runs.pitch} * size : nullptr;
      const bool is_whole = !ends_are_shared || strip + 1 == runs.strips;
      const int at = strip * step * queries;  // the last vector may be narrower
      transpose_strip<kInWords>(from, stride, size, range(2).begin + at,
                                std::min(is_whole ? count : step * queries, tokens() - at), to,
                                before, beyond);
      to += ptrdiff_t{runs.pitch} * size;
    }
  }

 private:
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));

  // Which key stands at each position of a packed row, and where each key of a window lies in it.
  void find_keys() {
    const int extent = lane_axis().window.extent;
    for (int p = range(2).begin; p < range(2).end; ++p) {
      positions_[p - range(2).begin] = p >= 0 && p < extent ? p : packed_key(lane_axis(), p);
    }
    if (layout_ == KeyLayout::shared) return;
    find_key_offsets(lane_axis().window.kernel_size + lane_axis().twins - 1, packed_.runs.num_runs,
                     packed_.runs.columns, key_offsets_);
  }

  const Element* row_at(const Element* row, ptrdiff_t stride, int p) const {
    const int key = positions_[p - range(2).begin];
    return key < 0 ? zeros_ : row + key * stride;
  }
  // True if `count` positions from `first` on, `step` apart, are tokens of the axis.
  bool are_inside(int first, int count, int step) const {
    return first >= 0 && first + (count - 1) * step < lane_axis().window.extent;
  }
  // What will be packed soon: as many of `count` positions, `step` apart, as the box has. `row` is
  // position 0.
  void prefetch_tokens(const Element* row, ptrdiff_t stride, int first, int count, int step,
                       int size) const {
    if (first >= range(2).end) return;
    count = std::min(count, (range(2).end - first + step - 1) / step);
    if (are_inside(first, count, step)) {
      prefetch_rows(row + first * stride, step * stride, count, size);
    } else {
      for (int i = 0; i < count; ++i) prefetch(row_at(row, stride, first + i * step), size);
    }
  }
  ptrdiff_t position_stride(const Strides& strides) const {
    return strides.token[2] * lane_axis().token_step;
  }

  // `count` positions from `first` on. The first vector of each run also goes behind that of the
  // strip `before`, if one is given, which has `beyond` columns more.
  template <bool kInWords>
  void transpose_strip(const Element* from, ptrdiff_t stride, int size, int first, int count,
                       T* strip, T* before = nullptr, int beyond = 0) const {
    const int runs = packed_.runs.num_runs;
    const hn::CappedTag<T, 4> few;
    constexpr int kFew = static_cast<int>(hn::MaxLanes(few));
    for (int run = 0; run < runs; ++run) {
      const int columns = (count - run + runs - 1) / runs;
      const ptrdiff_t of_run = ptrdiff_t{run} * packed_.runs.columns;
      T* to = strip + of_run;
      int column = 0;
      if (before != nullptr) {
        T* again = before + of_run + kLanes;
        prefetch_tokens(from, stride, first + run + kLanes * runs, kLanes, runs,
                        kInWords ? 2 * size : size);
        if (beyond <= kLanes / 2) {
          transpose_columns<kInWords, kLanes / 2>(D(), from, stride, size, first + run, to, again);
        } else {
          transpose_columns<kInWords, kLanes>(D(), from, stride, size, first + run, to, again);
        }
        column = kLanes;
      }
      for (; columns - column > kLanes / 2; column += kLanes) {
        const int here = first + column * runs + run, next = here + kLanes * runs;
        prefetch_tokens(from, stride, next, kLanes, runs, kInWords ? 2 * size : size);
        transpose_columns<kInWords>(D(), from, stride, size, here, to + column);
      }
      if constexpr (kLanes > 2 * kFew) {
        const hn::CappedTag<T, 2 * kFew> half;
        for (; columns - column > kFew; column += 2 * kFew) {
          transpose_columns<kInWords>(half, from, stride, size, first + column * runs + run,
                                      to + column);
        }
      }
      for (; column < columns; column += kFew) {
        transpose_columns<kInWords>(few, from, stride, size, first + column * runs + run,
                                    to + column);
      }
    }
  }

  // A vector of positions from `first` on; the first kAgain of them also to `again`.
  template <bool kInWords, int kAgain = 0, class Tag>
  void transpose_columns(Tag tag, const Element* from, ptrdiff_t stride, int size, int first, T* to,
                         T* again = nullptr) const {
    constexpr int kColumns = static_cast<int>(hn::MaxLanes(tag));
    const int runs = packed_.runs.num_runs, last = first + (kColumns - 1) * runs;
    const auto transpose = [&](const auto& rows) {
      const auto write = [&](const auto& of) VECINA_INLINE {
        transpose_rows<kAgain>(tag, of, static_cast<size_t>(size), static_cast<size_t>(pitch()),
                               Unscaled(), to, again);
      };
      if constexpr (kInWords) {
        write(InWords<std::remove_cvref_t<decltype(rows)>>{rows});
      } else {
        write(rows);
      }
    };
    if (first >= 0 && last < lane_axis().window.extent) {
      transpose(RegularRows<Element>(from + first * stride, runs * stride));
    } else {
      std::array<const Element*, kColumns> rows;
      for (int lane = 0; lane < kColumns; ++lane) {
        // The last vector of a row may reach beyond it.
        const int p = std::min(first + lane * runs, range(2).end - 1);
        rows[static_cast<size_t>(lane)] = row_at(from, stride, p);
      }
      transpose(ScatteredRows<Element>{rows.data()});
    }
  }

  const std::array<const AxisGroup*, kRank> axes_;
  const PackedBox packed_;
  const KeyLayout layout_;
  const int first_query_;
  const Element* const zeros_;
  int* const positions_;
  int64_t* const key_offsets_;
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_PACKED_KEYS_INL_H_
