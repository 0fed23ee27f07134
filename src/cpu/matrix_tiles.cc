// SPDX-License-Identifier: MIT
#include "cpu/matrix_tiles.h"

#include <atomic>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vecina::internal::cpu {
namespace {

std::atomic<MatrixTiles> chosen{MatrixTiles::none};

}  // namespace

const char* name_of(MatrixTiles tiles) {
  switch (tiles) {
    case MatrixTiles::amx:
      return "AMX";
    case MatrixTiles::emulated:
      return "AMX_EMULATED";
    default:
      return "";
  }
}

bool has_matrix_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kBfloat16 = 1U << 22, kTiles = 1U << 24;  // leaf 7, edx
  constexpr unsigned kRounding = 1U << 5;                      // leaf 7.1, eax: AVX-512 BF16
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kBfloat16) == 0 || (edx & kTiles) == 0) return false;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kRounding) != 0;
#else
  return false;
#endif
}

bool request_matrix_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

void choose_matrix_tiles(MatrixTiles tiles) { chosen.store(tiles, std::memory_order_relaxed); }
MatrixTiles chosen_matrix_tiles() { return chosen.load(std::memory_order_relaxed); }

}  // namespace vecina::internal::cpu
