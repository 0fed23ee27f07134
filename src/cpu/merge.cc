// SPDX-License-Identifier: MIT
// Streams rows of head_dim: memory is the limit, so the exponentials of one vector of rows are
// computed together and each output is read once.
#include "cpu/merge.h"

#include <algorithm>
#include <array>
#include <vector>

#include "core/tensor.h"
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/merge.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/pack-inl.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

#ifndef VECINA_CPU_MERGE_ONCE_
#define VECINA_CPU_MERGE_ONCE_
namespace vecina::internal::cpu {

// A merge with its dimensions folded: those that are one in memory for every tensor become one.
// Tensors are ordered: outputs, then the merged output; lses, then the merged lse.
struct FoldedMerge {
  static constexpr int kMaxDims = 5;
  int count = 0, num_dims = 0;
  int64_t head_dim = 0, rows = 1;
  std::array<int64_t, kMaxDims> sizes;  // innermost first
  const vecina_tensor *outputs, *lses, *output, *lse;
  std::array<int, kMaxDims> dims;  // the tensors' dimension whose stride a folded one has

  const vecina_tensor& row_tensor(int i) const { return i < count ? outputs[i] : *output; }
  const vecina_tensor& lse_tensor(int i) const { return i < count ? lses[i] : *lse; }
  int64_t offset(const vecina_tensor& tensor, int64_t row) const {
    int64_t at = 0;
    for (int d = 0; d < num_dims; ++d) {
      const auto k = static_cast<size_t>(d);
      at += row % sizes[k] * tensor.strides[dims[k]];
      row /= sizes[k];
    }
    return at;
  }
};

inline constexpr int64_t kRowsPerChunk = 256;

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_MERGE_ONCE_

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One vector of rows from `first` on, `rows` of them: weights for each branch, in `weights`.
template <class D>
void merge_weights(D d, const FoldedMerge& m, int64_t first, int64_t rows,
                   hn::TFromD<D>* HWY_RESTRICT weights) {
  using T = hn::TFromD<D>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int i = 0; i < m.count; ++i) {
    const vecina_tensor& lse = m.lses[i];
    const T* data = reinterpret_cast<const T*>(address(lse));
    for (int64_t lane = 0; lane < lanes; ++lane) {
      weights[i * lanes + lane] = data[m.offset(lse, first + std::min(lane, rows - 1))];
    }
  }
  auto max = hn::LoadU(d, weights);
  for (int i = 1; i < m.count; ++i) max = hn::Max(max, hn::LoadU(d, weights + i * lanes));
  // Branches of nothing but -infinity weigh 0, not NaN.
  const auto lowest = hn::Set(d, -hwy::HighestValue<T>());
  const auto base = hn::IfThenZeroElse(hn::Lt(max, lowest), max);
  auto sum = hn::Zero(d);
  for (int i = 0; i < m.count; ++i) {
    const auto x = hn::Sub(hn::LoadU(d, weights + i * lanes), base);
    const auto w = hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));  // Exp makes 0 of a NaN
    hn::StoreU(w, d, weights + i * lanes);
    sum = hn::Add(sum, w);
  }
  const auto is_empty = hn::Eq(sum, hn::Zero(d));
  const auto inverse = hn::IfThenZeroElse(is_empty, hn::Div(hn::Set(d, T{1}), sum));
  for (int i = 0; i < m.count; ++i) {
    hn::StoreU(hn::Mul(hn::LoadU(d, weights + i * lanes), inverse), d, weights + i * lanes);
  }
  if (!given(*m.lse)) return;
  HWY_ALIGN T merged[hn::MaxLanes(d)];
  const auto infinite = hn::Set(d, -hwy::HighestValue<T>() * 2);
  const auto lse = hn::IfThenElse(hn::IsNaN(sum), sum, hn::Add(base, hn::Log(d, sum)));
  hn::Store(hn::IfThenElse(is_empty, infinite, lse), d, merged);
  T* data = reinterpret_cast<T*>(address(*m.lse));
  for (int64_t lane = 0; lane < rows; ++lane) {
    data[m.offset(*m.lse, first + lane)] = merged[lane];
  }
}

template <typename Element>
void merge_rows(const FoldedMerge& m, int64_t begin, int64_t end) {
  using T = typename ComputeType<Element>::type;
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  thread_local std::vector<T> weights;
  weights.resize(static_cast<size_t>(m.count) * static_cast<size_t>(lanes));
  for (int64_t first = begin; first < end; first += lanes) {
    const int64_t rows = std::min(lanes, end - first);
    merge_weights(d, m, first, rows, weights.data());
    for (int64_t lane = 0; lane < rows; ++lane) {
      Element* to =
          reinterpret_cast<Element*>(address(*m.output)) + m.offset(*m.output, first + lane);
      for (int64_t at = 0; at < m.head_dim; at += lanes) {
        const auto count = static_cast<size_t>(std::min(lanes, m.head_dim - at));
        auto sum = hn::Zero(d);
        for (int i = 0; i < m.count; ++i) {
          const T w = weights[static_cast<size_t>(i * lanes + lane)];
          if (w == T{0}) continue;  // what weighs nothing may be anything, NaN included
          const Element* from = reinterpret_cast<const Element*>(address(m.outputs[i])) +
                                m.offset(m.outputs[i], first + lane) + at;
          HWY_ALIGN Element part[hn::MaxLanes(d)] = {};
          if (count < static_cast<size_t>(lanes)) {
            std::copy_n(from, count, part);
            from = part;
          }
          sum = hn::MulAdd(hn::Set(d, w), load(d, from), sum);
        }
        store_some(d, sum, count, to + at);
      }
    }
  }
}

void merge_chunk(const FoldedMerge& m, int64_t begin, int64_t end) {
  switch (m.output->dtype) {
    case VECINA_F64:
      return merge_rows<double>(m, begin, end);
    case VECINA_F16:
      return merge_rows<float16>(m, begin, end);
    case VECINA_BF16:
      return merge_rows<bfloat16>(m, begin, end);
    default:
      return merge_rows<float>(m, begin, end);
  }
}

}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::internal::cpu {
namespace {

HWY_EXPORT(merge_chunk);

FoldedMerge fold(const MergeArgs& args) {
  FoldedMerge m;
  m.count = args.count;
  m.outputs = args.outputs;
  m.lses = args.lses;
  m.output = args.output;
  m.lse = args.lse;
  const int last = args.output->ndim - 1;
  m.head_dim = args.output->shape[last];
  const auto is_one = [&](int outer, int inner) {
    for (int i = 0; i <= m.count; ++i) {
      for (const vecina_tensor* tensor : {&m.row_tensor(i), &m.lse_tensor(i)}) {
        if (given(*tensor) &&
            tensor->strides[outer] != tensor->strides[inner] * tensor->shape[inner]) {
          return false;
        }
      }
    }
    return true;
  };
  for (int d = last - 1; d >= 0; --d) {
    const int64_t size = args.output->shape[d];
    m.rows *= size;
    if (m.num_dims > 0 && (size == 1 || is_one(d, d + 1))) {
      m.sizes[static_cast<size_t>(m.num_dims - 1)] *= size;
    } else {
      m.dims[static_cast<size_t>(m.num_dims)] = d;
      m.sizes[static_cast<size_t>(m.num_dims++)] = size;
    }
  }
  return m;
}

}  // namespace

void merge(const MergeArgs& args, ThreadPool* threads) {
  const FoldedMerge folded = fold(args);
  if (folded.rows == 0 || folded.head_dim == 0) return;
  const int64_t chunks = (folded.rows + kRowsPerChunk - 1) / kRowsPerChunk;
  const auto body = [](int64_t chunk, void* user) {
    const auto& m = *static_cast<const FoldedMerge*>(user);
    HWY_DYNAMIC_DISPATCH(merge_chunk)
    (m, chunk * kRowsPerChunk, std::min(m.rows, (chunk + 1) * kRowsPerChunk));
  };
  // A row moves (count + 1) * head_dim elements; a few bytes a nanosecond on one core.
  const double elements =
      static_cast<double>(folded.rows) * static_cast<double>(folded.head_dim) * (folded.count + 1);
  threads->parallel_for(chunks, elements > 5e5, body, const_cast<FoldedMerge*>(&folded));
}

}  // namespace vecina::internal::cpu
#endif  // HWY_ONCE
