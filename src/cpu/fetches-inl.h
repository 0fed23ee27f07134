// SPDX-License-Identifier: MIT
// Fetching what is read or written later, while other things are computed.
// Part of backward.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_FETCHES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_FETCHES_INL_H_
#undef VECINA_CPU_FETCHES_INL_H_
#else
#define VECINA_CPU_FETCHES_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "cpu/pack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {

// Rows that are fetched a few at a time, spread evenly over some work: a core waits for no more
// than some twenty lines at once. An instruction more for each line costs as much as the lines do.
template <Fetch kFetch>
class Fetches {
 public:
  // Over so much work, in whatever unit.
  void start(int64_t work) {
    work_ = work;
    done_ = rows_ = fetched_ = row_ = 0;
    rows_of_one_ = 0.0;
    num_areas_ = area_ = 0;
  }
  // `count` rows of `size` elements at equal distances; what finds no room is not fetched.
  template <typename Element>
  void add(const Element* from, int64_t stride, int64_t count, int64_t size) {
    const int64_t bytes = size * int64_t{sizeof(Element)};
    if (count <= 0) return;
    for (int64_t i = 0; i < bytes && num_areas_ < kMaxAreas; i += 2 * kLine) {
      areas_[num_areas_++] = {reinterpret_cast<const char*>(from) + i,
                              stride * int64_t{sizeof(Element)}, count, bytes - i > kLine};
      rows_ += count;
    }
    rows_of_one_ = static_cast<double>(rows_) / static_cast<double>(std::max<int64_t>(work_, 1));
  }
  // So much work was done since the last call.
  void advance(int64_t work) {
    done_ += work;
    const int64_t due =
        done_ < work_ ? static_cast<int64_t>(static_cast<double>(done_) * rows_of_one_) : rows_;
    while (fetched_ < due) {
      const Area& area = areas_[area_];
      const int64_t count = std::min(due - fetched_, area.rows - row_);
      const char* from = area.from + row_ * area.stride;
      if (area.has_two_lines) {
        fetch<2>(from, area.stride, count);
      } else {
        fetch<1>(from, area.stride, count);
      }
      fetched_ += count;
      row_ += count;
      if (row_ < area.rows) return;
      row_ = 0;
      ++area_;
    }
  }
  void finish() { advance(work_); }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr size_t kMaxAreas = 256;

  struct Area {
    const char* from;
    int64_t stride, rows;
    bool has_two_lines;  // of each row; more are areas of their own
  };

  template <int kLines>
  static HWY_INLINE void fetch(const char* row, int64_t stride, int64_t count) {
    const auto fetch_row = [&]() VECINA_INLINE {
      for (int i = 0; i < kLines; ++i) prefetch_line<kFetch>(row + i * kLine);
      row += stride;
    };
    for (; count >= 4; count -= 4) {
      fetch_row();
      fetch_row();
      fetch_row();
      fetch_row();
    }
    for (; count > 0; --count) fetch_row();
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
    asm volatile("" : : "r"(row));  // g++ drops calls of functions that do nothing but fetch
#endif
  }

  int64_t work_ = 0, done_ = 0;
  double rows_of_one_ = 0.0;        // unit of work: dividing takes longer
  int64_t rows_ = 0, fetched_ = 0;  // of all areas
  size_t num_areas_ = 0, area_ = 0;
  int64_t row_ = 0;  // of the area that is being fetched
  std::array<Area, kMaxAreas> areas_;
};

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_FETCHES_INL_H_
