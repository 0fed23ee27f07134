// SPDX-License-Identifier: MIT
// The matrix form of both passes, for AVX-512.
#include "cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matrix.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
//
#include "cpu/matrix_backward-inl.h"
#include "cpu/matrix_tiles.h"
#include "cpu/matrix_unit-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace vecina::internal::cpu::HWY_NAMESPACE {
#if HWY_TARGET == HWY_AVX3
template <class Tiles>
void run_matrix_unit(const ForwardPlan& plan, const ForwardPointers& pointers, int64_t unit,
                     void* scratch) {
  MatrixUnit<Tiles>(plan, pointers, unit, scratch).run();
}
template <class Tiles>
void run_matrix_backward_unit(const BackwardPlan& plan, const BackwardPointers& pointers,
                              int64_t unit, void* scratch) {
  MatrixBackwardUnit<Tiles>(plan, pointers, unit, scratch).run();
}
#endif
static ForwardFunction function_of(MatrixTiles tiles) {
#if HWY_TARGET == HWY_AVX3
  if (tiles == MatrixTiles::amx) return &run_matrix_unit<AmxTiles>;
  if (tiles == MatrixTiles::emulated) return &run_matrix_unit<EmulatedTiles>;
#endif
  static_cast<void>(tiles);
  return nullptr;
}
static BackwardFunction backward_function_of(MatrixTiles tiles) {
#if HWY_TARGET == HWY_AVX3
  if (tiles == MatrixTiles::amx) return &run_matrix_backward_unit<AmxTiles>;
  if (tiles == MatrixTiles::emulated) return &run_matrix_backward_unit<EmulatedTiles>;
#endif
  static_cast<void>(tiles);
  return nullptr;
}
static double multiply_tiles(int repeats) {
#if HWY_TARGET == HWY_AVX3
  alignas(64) static constexpr float kZeros[kMatrixTile][kMatrixTile] = {};
  AmxTiles::configure();
  AmxTiles::load<4>(kZeros, kTileRowBytes);
  AmxTiles::load<5>(kZeros, kTileRowBytes);
  clear_sums<AmxTiles>();
  for (int i = 0; i < repeats; ++i) {
    AmxTiles::multiply<0, 4, 5>();
    AmxTiles::multiply<1, 4, 5>();
    AmxTiles::multiply<2, 4, 5>();
    AmxTiles::multiply<3, 4, 5>();
  }
  AmxTiles::release();
  return 4.0 * 2.0 * kMatrixTile * kMatrixTile * kMatrixStep * repeats;
#else
  static_cast<void>(repeats);
  return 0.0;
#endif
}
}  // namespace vecina::internal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vecina::internal::cpu {
HWY_EXPORT(function_of);
HWY_EXPORT(backward_function_of);
HWY_EXPORT(multiply_tiles);
ForwardFunction matrix_function(MatrixTiles tiles) {
  return HWY_DYNAMIC_DISPATCH(function_of)(tiles);
}
BackwardFunction matrix_backward_function(MatrixTiles tiles) {
  return HWY_DYNAMIC_DISPATCH(backward_function_of)(tiles);
}
double multiply_matrix_tiles(int repeats) { return HWY_DYNAMIC_DISPATCH(multiply_tiles)(repeats); }
}  // namespace vecina::internal::cpu
#endif  // HWY_ONCE
