// SPDX-License-Identifier: MIT
//
// Which keys each query attends to: the only place in this repository that says so.
//
// Compiles unchanged as C++20, CUDA (nvcc, NVRTC) and GLSL 4.50, so it is written in
// their common subset: int, bool, plain structs, ?:, no templates, no references.
// Definition: Hassani et al., "Generalized Neighborhood Attention", arXiv:2504.16922.
//
// One axis at a time. A dilation d splits an axis into d independent groups
// (tokens r, r+d, r+2d, ...); inside a group the window is dense. `i`, `j` below are
// positions *inside the group*; na_group_* convert to and from axis positions.
#ifndef VECINA_CORE_WINDOW_H_
#define VECINA_CORE_WINDOW_H_

#if defined(__CUDACC__)
#define NA_FN constexpr __host__ __device__
#elif defined(__cplusplus)
#define NA_FN constexpr
#else  // GLSL
#define NA_FN
#endif

struct NaAxis {
  int extent;       // tokens in this dilation group, >= kernel_size (GLSL reserves "length")
  int kernel_size;  // keys per full window, >= 1
  int stride;       // queries that share one window, 1 <= stride <= kernel_size
  bool is_causal;   // true: no key after the query
};

NA_FN int na_min(int a, int b) { return a < b ? a : b; }
NA_FN int na_max(int a, int b) { return a > b ? a : b; }

NA_FN int na_group_length(int axis_length, int dilation, int group) {
  return (axis_length - group + dilation - 1) / dilation;
}
NA_FN int na_group_to_axis(int i, int dilation, int group) { return i * dilation + group; }

// The query whose window its whole stride group uses: the middle one (right of the
// middle if stride is even); with causality the last one, whose window ends at itself.
NA_FN int na_leader(NaAxis a, int i) {
  int offset = a.is_causal ? a.stride - 1 : a.stride / 2;
  return na_min((i / a.stride) * a.stride + offset, a.extent - 1);
}

// How far a window reaches to the left of its leader, where no border is near.
NA_FN int na_window_reach(NaAxis a) { return a.is_causal ? a.kernel_size - 1 : a.kernel_size / 2; }

// Keys [na_window_begin, na_window_end) are visible to query i.
NA_FN int na_window_begin(NaAxis a, int i) {
  return na_min(na_max(na_leader(a, i) - na_window_reach(a), 0), a.extent - a.kernel_size);
}
NA_FN int na_window_end(NaAxis a, int i) {
  return a.is_causal ? i + 1 : na_window_begin(a, i) + a.kernel_size;
}

// A downsampled output (output_stride s) has queries only at axis positions 0, s, 2s, ...; each
// keeps the window it has in the full grid. Query j of the output is axis position j * s.
NA_FN int na_query_to_axis(int j, int output_stride) { return j * output_stride; }

// Inverse map, for gradients of key and value: queries [begin, end) that see key j.
NA_FN int na_query_begin(NaAxis a, int j) {
  if (a.is_causal) return j;
  int need = j - a.kernel_size + 1;  // smallest window begin that still holds j
  if (need <= 0) return 0;
  int from_leader = need + a.kernel_size / 2 - a.stride / 2;
  return na_max((from_leader + a.stride - 1) / a.stride, 0) * a.stride;
}
NA_FN int na_query_end(NaAxis a, int j) {
  if (j >= a.extent - a.kernel_size) return a.extent;
  int left = na_window_reach(a);
  int offset = a.is_causal ? a.stride - 1 : a.stride / 2;
  return na_min(((j + left - offset) / a.stride + 1) * a.stride, a.extent);
}

#endif  // VECINA_CORE_WINDOW_H_
