// The one exception that native code throws on purpose. The binding turns the code into a JavaScript error class.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace lean {

enum class ErrorCode {
  kInvalidArgument,  // the caller's mistake: RangeError
  kOutOfMemory,      // LeanAttentionError OUT_OF_MEMORY
  kOutOfPages,       // LeanAttentionError OUT_OF_PAGES
  kUnsupported,      // LeanAttentionError UNSUPPORTED: this device cannot do it
  kCudaUnavailable,  // LeanAttentionError CUDA_UNAVAILABLE
  kDeviceLost,       // LeanAttentionError DEVICE_LOST
  kLaunchFailed,     // LeanAttentionError LAUNCH_FAILED: this work was refused, the device lives
  kBadDeviceData,    // LeanAttentionError BAD_DEVICE_DATA: lengths or page indices in device memory that cannot be
  kInternal,         // LeanAttentionError INTERNAL: a fault of the library's own
  kCancelled,        // the environment is going away: nobody is left to hear of it
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

  // Which of several causes of one code it was, as lib/errors.ts names them; empty: there is but one.
  Error because(std::string reason) && {
    reason_ = std::move(reason);
    return std::move(*this);
  }

  ErrorCode code() const { return code_; }
  const std::string& reason() const { return reason_; }

 private:
  ErrorCode code_;
  std::string reason_;
};

// The caller's mistake, in one sentence.
[[noreturn]] inline void refuse(const std::string& sentence) { throw Error(ErrorCode::kInvalidArgument, sentence); }

}  // namespace lean
