// SPDX-License-Identifier: MIT
// Whether passes of bfloat16 may multiply tiles of matrices (the matrix form), and with
// what: the CPU's AMX, or an emulation by which machines without it test the kernels.
#ifndef VECINA_CPU_MATRIX_TILES_H_
#define VECINA_CPU_MATRIX_TILES_H_

#include "cpu/backward.h"
#include "cpu/forward.h"

namespace vecina::internal::cpu {

enum class MatrixTiles { none, amx, emulated };
// "AMX" and "AMX_EMULATED", by which VECINA_CPU_TARGET asks for them; "" for none.
const char* name_of(MatrixTiles tiles);

// True if the CPU has tiles of bfloat16, and if Linux lends this process their state: for good,
// from the first request on.
bool has_matrix_tiles();
bool request_matrix_tiles();

// What forward_kernel_bf16() and backward_kernel_bf16() take; none before. For choose_target().
void choose_matrix_tiles(MatrixTiles tiles);
MatrixTiles chosen_matrix_tiles();

// Run a unit of a plan that takes the matrix form; nullptr if the chosen instruction set has none.
ForwardFunction matrix_function(MatrixTiles tiles);
BackwardFunction matrix_backward_function(MatrixTiles tiles);

// Does so many times four products of the CPU's tiles; returns the multiplications and additions.
double multiply_matrix_tiles(int repeats);

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_MATRIX_TILES_H_
