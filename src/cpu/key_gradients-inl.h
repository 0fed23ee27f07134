// SPDX-License-Identifier: MIT
// What the units of the backward pass leave to others: gradients of keys, values and the bias out
// of their sums, and zeros for tokens that no query sees.
// Part of backward.cc and of matrix.cc; compiled once for every instruction set.
#if defined(VECINA_CPU_KEY_GRADIENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VECINA_CPU_KEY_GRADIENTS_INL_H_
#undef VECINA_CPU_KEY_GRADIENTS_INL_H_
#else
#define VECINA_CPU_KEY_GRADIENTS_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/backward.h"
#include "cpu/pack-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Where a unit sums up: in its scratch, or apart from all others.
template <typename T>
struct UnitSums {
  T *keys, *additional, *bias;

  UnitSums(const BackwardPlan& plan, const BackwardPointers& pointers, int64_t unit, T* scratch)
      : keys(scratch + plan.scratch.sums), additional(scratch + plan.scratch.additional_sums) {
    T* shared = static_cast<T*>(pointers.shared);
    const auto units = static_cast<size_t>(plan.num_units()), index = static_cast<size_t>(unit);
    if (plan.keeps_sums_apart) {
      keys = shared + index * plan.sums_size;
      shared += units * plan.sums_size;
    }
    if (plan.keeps_additional_apart) {
      additional = shared + index * plan.additional_sums_size;
      shared += units * plan.additional_sums_size;
    }
    bias = shared + index * plan.bias_sums_size;
  }
};

// Writes the gradients of keys and values out of the sums of units.
template <typename Element>
class KeyGradients {
 public:
  using T = typename ComputeType<Element>::type;
  using D = hn::ScalableTag<T>;

  KeyGradients(const BackwardPlan& plan, const BackwardPointers& pointers, int64_t head_index)
      : plan_(plan) {
    const int64_t batch = head_index / plan.heads_kv, head = head_index % plan.heads_kv;
    grad_key_ = tensor_at<Element>(pointers.grad_key, plan.grad_key, batch, head);
    grad_value_ = tensor_at<Element>(pointers.grad_value, plan.grad_value, batch, head);
    streams_ = kStreams<T, Element> && plan.streams_gradients && plan.head_dim >= kLanes &&
               plan.head_dim_value >= kLanes &&
               has_whole_vectors(grad_key_, plan.grad_key, kLanes) &&
               has_whole_vectors(grad_value_, plan.grad_value, kLanes);
    grad_additional_key_ =
        tensor_at<Element>(pointers.grad_additional_key, plan.grad_additional_key, batch, head);
    grad_additional_value_ =
        tensor_at<Element>(pointers.grad_additional_value, plan.grad_additional_value, batch, head);
  }

  // A slice from the sums of the boxes of its combination, in their order: sums, or if kept apart
  // those of box b at sums + b * sums_size. The sums change.
  void write_slice(const KeySlice& slice, T* sums) const {
    write(slice, sums, plan_.key_pitch, plan_.head_dim, plan_.scale, plan_.grad_key, grad_key_);
    write(slice, sums + plan_.sums_value, plan_.value_pitch, plan_.head_dim_value, 1.0,
          plan_.grad_value, grad_value_);
  }

  // True if write_slice() writes past the caches.
  bool streams() const { return streams_; }
  // Afterwards other threads see that, too.
  void finish() const {
    if (streams_) hwy::FlushStream();
  }

  // Additional tokens from the sums of `count` boxes.
  void write_additional(const T* sums, size_t count) const {
    write_tokens(sums, count, plan_.key_pitch, plan_.head_dim, plan_.scale,
                 plan_.grad_additional_key.token[2], grad_additional_key_);
    write_tokens(sums + plan_.additional_value_sums, count, plan_.value_pitch, plan_.head_dim_value,
                 1.0, plan_.grad_additional_value.token[2], grad_additional_value_);
  }

 private:
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  static constexpr int kTokensAhead = 8;  // that are fetched before they are written

  static void write_row(const T* sum, int size, T scale, bool is_streamed, Element* to) {
    const D d;
    const auto factor = hn::Set(d, scale);
    ptrdiff_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      store_or_stream(d, hn::Mul(factor, hn::LoadU(d, sum + i)), is_streamed, to + i);
    }
    if (i == size) return;
    store_some(d, hn::Mul(factor, hn::LoadU(d, sum + i)), static_cast<size_t>(size - i), to + i);
  }
  // `count` rows that follow each other.
  void write_rows(const T* sums, ptrdiff_t pitch, int count, int size, T scale, int64_t stride,
                  Element* to) const {
    const D d;
    const auto factor = hn::Set(d, scale);
    ptrdiff_t column = 0;  // vectors by vectors: rows are short
    const auto write_vectors = [&](auto vectors) VECINA_INLINE {
      constexpr ptrdiff_t kLine = 64 / sizeof(Element), kElements = vectors * kLanes;
      const T* sum = sums + column;
      Element* at = to + column;
      for (int i = 0; i < count; ++i, sum += pitch, at += stride) {
        if (!streams_) {
          const Element* const ahead = at + kTokensAhead * stride;
          for (ptrdiff_t k = 0; k < kElements; k += kLine) prefetch_line<Fetch::near>(ahead + k);
        }
        unroll<vectors>([&](auto v) VECINA_INLINE {
          store_or_stream(d, hn::Mul(factor, hn::Load(d, sum + v * kLanes)), streams_,
                          at + v * kLanes);
        });
      }
      column += kElements;
    };
    while (column + 4 * kLanes <= size) write_vectors(std::integral_constant<size_t, 4>());
    if (column + 2 * kLanes <= size) write_vectors(std::integral_constant<size_t, 2>());
    if (column + kLanes <= size) write_vectors(std::integral_constant<size_t, 1>());
    if (column == size) return;
    const auto left = static_cast<int>(size - column);
    for (int i = 0; i < count; ++i) {
      Element* at = to + i * stride + column;
      if (!streams_) prefetch(at + kTokensAhead * stride, left);
      write_row(sums + i * pitch + column, left, scale, streams_, at);
    }
  }
  static void add_row(const T* from, ptrdiff_t pitch, T* to) {
    const D d;
    for (ptrdiff_t i = 0; i < pitch; i += kLanes) {
      hn::Store(hn::Add(hn::Load(d, to + i), hn::Load(d, from + i)), d, to + i);
    }
  }

  void write(const KeySlice& slice, T* sums, int pitch, int size, double scale,
             const Strides& strides, Element* gradient) const {
    if (gradient == nullptr) return;
    auto first = static_cast<size_t>(plan_.first_box[static_cast<size_t>(slice.combination)]);
    auto last = static_cast<size_t>(plan_.first_box[static_cast<size_t>(slice.combination) + 1]);
    const BoxKeys any(plan_, first);
    const AxisGroup& axis = *any.axes[2];
    Element* row = gradient + token_offset(strides, any.axes[0]->to_token(slice.z),
                                           any.axes[1]->to_token(slice.y));
    while (first < last && !may_touch(first, slice)) ++first;
    while (first < last && !may_touch(last - 1, slice)) --last;
    const bool is_one = last - first == 1;  // box, which is then found once
    const Part only = is_one ? part_of(first, slice, sums, pitch) : Part();
    if (is_one) add_borders(axis, slice, only, pitch);
    const int64_t stride = axis.token_step * strides.token[2];
    Element* to = row + axis.to_token(slice.begin) * strides.token[2];
    for (int p = slice.begin, count; p < slice.end; p += count, to += count * stride) {
      const int window = axis.window.kernel_size;
      if (p >= only.range.begin && p < only.range.end) {
        count = std::min(only.range.end, slice.end) - p;
        write_rows(only.sums + ptrdiff_t{p - only.range.begin} * pitch, pitch, count, size,
                   static_cast<T>(scale), stride, to);
        continue;
      }
      count = 1;
      if (!streams_) prefetch(to + kTokensAhead * stride, size);
      T* sum = nullptr;
      for (size_t b = first; b < last; ++b) {
        const Part part = is_one ? only : part_of(b, slice, sums, pitch);
        // The key itself, and where it stands for positions beyond the borders.
        for (int at : {p, p - window, p + window}) {
          if (at < part.range.begin || at >= part.range.end) continue;
          if (at != p && packed_key(axis, at) != p) continue;
          T* column = part.sums + ptrdiff_t{at - part.range.begin} * pitch;
          if (sum == nullptr) {
            sum = column;
          } else {
            add_row(column, pitch, sum);
          }
        }
      }
      if (sum == nullptr) {
        std::fill_n(to, size, Element());
      } else {
        write_row(sum, size, static_cast<T>(scale), streams_, to);
      }
    }
  }

  // The sums of a box in the row of a slice, and their positions; none if it has no such row.
  struct Part {
    T* sums = nullptr;
    KeyRange range = {0, 0};
  };
  Part part_of(size_t b, const KeySlice& slice, T* sums, int pitch) const {
    const BoxKeys box(plan_, b);
    if (!box.packed.has_row(slice.z, slice.y)) return {};
    const KeyRange& range = box.packed.ranges[2];
    return {sums + (plan_.keeps_sums_apart ? b * plan_.sums_size : 0) +
                plan_.first_sum(box.packed, slice.z, slice.y) * pitch,
            range};
  }

  // Adds what stands beyond the borders to the sums of the keys that it stands for.
  static void add_borders(const AxisGroup& axis, const KeySlice& slice, const Part& part,
                          int pitch) {
    const KeyRange& range = part.range;
    const auto add = [&](int at) {
      const int p = packed_key(axis, at);
      if (p < std::max(slice.begin, range.begin) || p >= std::min(slice.end, range.end)) return;
      add_row(part.sums + ptrdiff_t{at - range.begin} * pitch, pitch,
              part.sums + ptrdiff_t{p - range.begin} * pitch);
    };
    for (int at = range.begin; at < std::min(0, range.end); ++at) add(at);
    for (int at = std::max(axis.window.extent, range.begin); at < range.end; ++at) add(at);
  }

  bool may_touch(size_t b, const KeySlice& slice) const {
    const BoxKeys box(plan_, b);
    const KeyRange& range = box.packed.ranges[2];
    return box.packed.has_row(slice.z, slice.y) &&
           ((range.begin < slice.end && range.end > slice.begin) || range.begin < 0 ||
            range.end > box.axes[2]->window.extent);
  }

  void write_tokens(const T* sums, size_t count, int pitch, int size, double scale, int64_t stride,
                    Element* gradient) const {
    if (gradient == nullptr) return;
    HWY_ALIGN T buffer[kLanes];
    for (int64_t token = 0; token < plan_.additional_tokens; ++token) {
      for (int column = 0; column < size; column += kLanes) {
        std::fill_n(buffer, kLanes, T{0});
        for (size_t b = 0; b < count; ++b) {
          add_row(sums + b * plan_.additional_sums_size + token * pitch + column, kLanes, buffer);
        }
        write_row(buffer, std::min(size - column, kLanes), static_cast<T>(scale),
                  /*is_streamed=*/false, gradient + token * stride + column);
      }
    }
  }

  const BackwardPlan& plan_;
  Element *grad_key_, *grad_value_, *grad_additional_key_, *grad_additional_value_;
  bool streams_;
};

// Writes the gradient of the bias of a key head's queries out of the sums of all units.
template <typename T>
void write_bias_gradient(const BackwardPlan& plan, int64_t head_kv, const T* sums, void* gradient) {
  const BiasTable& bias = plan.grad_bias;
  T* to = static_cast<T*>(gradient) + head_kv * plan.head_group * bias.head;
  const size_t boxes = plan.boxes.size();
  const auto sum_of = [&](size_t entry) {
    T sum = 0;
    for (int64_t batch = 0; batch < plan.batch; ++batch) {
      const auto first = static_cast<size_t>(batch * plan.heads_kv + head_kv) * boxes;
      for (size_t unit = first; unit < first + boxes; ++unit) {
        sum += sums[unit * plan.bias_sums_size + entry];
      }
    }
    return sum;
  };
  size_t entry = 0;
  for (int head = 0; head < plan.head_group; ++head, to += bias.head) {
    for (int z = 0; z < bias.sizes[0]; ++z) {
      for (int y = 0; y < bias.sizes[1]; ++y) {
        for (int x = 0; x < bias.sizes[2]; ++x) {
          to[z * bias.strides[0] + y * bias.strides[1] + x * bias.strides[2]] = sum_of(entry++);
        }
      }
    }
  }
}

// Adds up what the units kept apart: keys and values, then additional tokens, then the bias.
template <typename Element>
void run_gather_unit(const BackwardPlan& plan, const BackwardPointers& pointers, int64_t unit,
                     void* /*scratch*/) {
  using T = typename ComputeType<Element>::type;
  T* shared = static_cast<T*>(pointers.shared);
  const size_t boxes = plan.boxes.size();
  if (plan.keeps_sums_apart) {
    const auto slices = static_cast<int64_t>(plan.slices.size());
    const int64_t gathers = plan.batch * plan.heads_kv * slices;  // none where there are no keys
    if (unit < gathers) {
      const int64_t head_index = unit / slices;
      const KeyGradients<Element> gradients(plan, pointers, head_index);
      gradients.write_slice(plan.slices[static_cast<size_t>(unit % slices)],
                            shared + static_cast<size_t>(head_index) * boxes * plan.sums_size);
      gradients.finish();
      return;
    }
    unit -= gathers;
    shared += static_cast<size_t>(plan.num_units()) * plan.sums_size;
  }
  if (plan.keeps_additional_apart) {
    if (unit < plan.batch * plan.heads_kv) {
      KeyGradients<Element>(plan, pointers, unit)
          .write_additional(shared + static_cast<size_t>(unit) * boxes * plan.additional_sums_size,
                            boxes);
      return;
    }
    unit -= plan.batch * plan.heads_kv;
    shared += static_cast<size_t>(plan.num_units()) * plan.additional_sums_size;
  }
  write_bias_gradient(plan, unit, shared, pointers.grad_bias);
}

// Zeros in one plane of the outermost token axis, of grad_query or of grad_key and grad_value.
template <typename Element>
void run_clear_unit(const BackwardPlan& plan, const BackwardPointers& pointers, int64_t unit,
                    void* /*scratch*/) {
  const auto clear = [&](void* data, const Strides& strides,
                         const std::array<int64_t, kRank>& extent, int64_t plane, int heads,
                         int size) {
    const int64_t batch = plane / extent[0], z = plane % extent[0];
    for (int head = 0; head < heads; ++head) {
      Element* first = tensor_at<Element>(data, strides, batch, head);
      if (first == nullptr) return;
      for (int64_t y = 0; y < extent[1]; ++y) {
        for (int64_t x = 0; x < extent[2]; ++x) {
          std::fill_n(first + token_offset(strides, z, y) + x * strides.token[2], size, Element());
        }
      }
    }
  };
  const int64_t query_planes = plan.batch * plan.query_extent[0];
  if (unit < query_planes) {
    clear(pointers.grad_query, plan.grad_query, plan.query_extent, unit,
          plan.heads_kv * plan.head_group, plan.head_dim);
  } else {
    unit -= query_planes;
    clear(pointers.grad_key, plan.grad_key, plan.key_extent, unit, plan.heads_kv, plan.head_dim);
    clear(pointers.grad_value, plan.grad_value, plan.key_extent, unit, plan.heads_kv,
          plan.head_dim_value);
  }
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // VECINA_CPU_KEY_GRADIENTS_INL_H_
