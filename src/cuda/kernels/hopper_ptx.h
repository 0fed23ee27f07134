// SPDX-License-Identifier: MIT
// Hopper's instructions for barriers in shared memory and for copies of boxes of a tensor. Shared
// memory is addressed by 32-bit numbers throughout.
#ifndef VECINA_CUDA_KERNELS_HOPPER_PTX_H_
#define VECINA_CUDA_KERNELS_HOPPER_PTX_H_

#include "hopper_params.h"
#include "types.h"

namespace vecina::cuda {

VECINA_DEVICE void init_barrier(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
VECINA_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
VECINA_DEVICE void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
VECINA_DEVICE void arrive_and_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
VECINA_DEVICE void wait(unsigned barrier, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Barriers of warps by number.
VECINA_DEVICE void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
VECINA_DEVICE void arrive_threads(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Coordinates of a box, in elements and tokens.
struct BoxOrigin {
  int column, token[3], batch;
};
VECINA_DEVICE void load_box(unsigned to, const HopperMap& map, unsigned barrier, BoxOrigin at) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(at.column), "r"(at.token[2]), "r"(at.token[1]), "r"(at.token[0]),
      "r"(at.batch)
      : "memory");
}
VECINA_DEVICE void store_box(unsigned from, const HopperMap& map, BoxOrigin at) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], "
      "[%1];" ::"l"(&map),
      "r"(from), "r"(at.column), "r"(at.token[2]), "r"(at.token[1]), "r"(at.token[0]), "r"(at.batch)
      : "memory");
}
// What other kernels wrote to a map becomes visible to copies by this block.
VECINA_DEVICE void acquire_map(const HopperMap& map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(&map) : "memory");
}
VECINA_DEVICE void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
VECINA_DEVICE void wait_until_stores_have_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
VECINA_DEVICE void wait_for_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// What this thread wrote to shared memory becomes visible to copies of boxes and to products.
VECINA_DEVICE void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int kRegisters>
VECINA_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
VECINA_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

VECINA_DEVICE unsigned shared_word(unsigned address) {
  unsigned word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}
VECINA_DEVICE void shared_words(unsigned address, unsigned (&words)[1]) {
  words[0] = shared_word(address);
}
VECINA_DEVICE void shared_words(unsigned address, unsigned (&words)[2]) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(address));
}
VECINA_DEVICE uint4 shared_quad(unsigned address) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address));
  return words;
}
VECINA_DEVICE uint2 shared_pair(unsigned address) {
  uint2 words;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words.x), "=r"(words.y) : "r"(address));
  return words;
}
VECINA_DEVICE void set_shared_pair(unsigned address, int x, int y) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(x), "r"(y) : "memory");
}
VECINA_DEVICE void set_shared_word(unsigned address, unsigned word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}
VECINA_DEVICE void set_shared_quad(unsigned address, uint4 words) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}
// Four 8x8 matrices of 16-bit elements; each lane gives the address of one row.
VECINA_DEVICE void store_matrices(unsigned row, unsigned m0, unsigned m1, unsigned m2,
                                  unsigned m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_HOPPER_PTX_H_
