// Device memory for the tests: owned, and fenced by guard bytes that nobody may change.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace lean::gpu {

// A test program may end where it stands.
inline void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  exit(3);
}

class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes, int fill = 0) : bytes_(bytes) {
    require(cudaMalloc(reinterpret_cast<void**>(&base_), bytes + 2 * kGuard), "cudaMalloc");
    require(cudaMemset(base_, kGuardByte, bytes + 2 * kGuard), "cudaMemset");
    this->fill(fill);
  }
  explicit DeviceBuffer(const void* source, size_t bytes) : DeviceBuffer(bytes) { write(source); }
  ~DeviceBuffer() { cudaFree(base_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  template <class T = void>
  T* data() const {
    return reinterpret_cast<T*>(base_ + kGuard);
  }
  size_t bytes() const { return bytes_; }

  void fill(int byte) { require(cudaMemset(data(), byte, bytes_), "cudaMemset"); }
  void write(const void* source) {
    if (bytes_) require(cudaMemcpy(data(), source, bytes_, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  template <class T = std::byte>
  std::vector<T> read() const {
    std::vector<T> values(bytes_ / sizeof(T));
    if (bytes_) require(cudaMemcpy(values.data(), data(), bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }
  bool guards_intact() const {
    std::vector<unsigned char> all(bytes_ + 2 * kGuard);
    require(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    for (size_t i = 0; i < kGuard; ++i)
      if (all[i] != kGuardByte || all[all.size() - 1 - i] != kGuardByte) return false;
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr unsigned char kGuardByte = 0xa5;
  std::byte* base_ = nullptr;
  size_t bytes_;
};

}  // namespace lean::gpu
