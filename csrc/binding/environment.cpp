#include "environment.h"

#include <new>
#include <string>

#include "../runtime/error.h"

namespace lean::binding {

namespace {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kOutOfMemory:
      return "OUT_OF_MEMORY";
    case ErrorCode::kCudaUnavailable:
      return "CUDA_UNAVAILABLE";
    case ErrorCode::kDeviceLost:
      return "DEVICE_LOST";
    case ErrorCode::kLaunchFailed:
      return "LAUNCH_FAILED";
    case ErrorCode::kBadDeviceData:
      return "BAD_DEVICE_DATA";
    case ErrorCode::kCancelled:
      return "CANCELLED";
    case ErrorCode::kOutOfPages:
      return "OUT_OF_PAGES";
    case ErrorCode::kUnsupported:
      return "UNSUPPORTED";
    case ErrorCode::kInternal:
    case ErrorCode::kInvalidArgument:
      break;
  }
  return "INTERNAL";
}

}  // namespace

Environment::Environment(Napi::Env env) : env_(env), ended_(EndedFunction::New(env, "lean-attention", 0, 1, this)) {
  ended_.Unref(env);  // only calls in flight keep the process alive
  // Hooks run last in, first out: this one before the thread-safe function's own, and before any buffer is freed.
  env.AddCleanupHook([this] { close(); });
}

Napi::Error Environment::to_js(std::exception_ptr error) {
  const auto make = [&](const char* code, const std::string& message, const std::string& reason = {}) {
    if (error_class_.IsEmpty()) return Napi::Error::New(env_, message);
    const Napi::Value cause = reason.empty() ? env_.Undefined() : Napi::String::New(env_, reason);
    const Napi::Value made = error_class_.New({Napi::String::New(env_, code), Napi::String::New(env_, message), cause});
    return Napi::Error(env_, made);
  };
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kInvalidArgument) return Napi::RangeError::New(env_, e.what());
    return make(code_name(e.code()), e.what(), e.reason());
  } catch (const std::bad_alloc&) {
    return make(
        "OUT_OF_MEMORY",
        "Not enough memory for the workspace of this call: use fewer workers, smaller batches or a smaller cache");
  } catch (const std::exception& e) {
    return make("INTERNAL", e.what());
  }
}

Napi::Promise Environment::start(std::shared_ptr<void> owner, std::vector<Napi::Object> pinned,
                                 const std::function<void(Done)>& submit) {
  auto owned = std::make_unique<Pending>(Pending{Napi::Promise::Deferred::New(env_), {}, std::move(owner), nullptr});
  Pending* pending = owned.get();
  for (const Napi::Object& object : pinned) pending->pinned.push_back(Napi::Persistent(object));
  const Napi::Promise promise = pending->deferred.Promise();
  if (pending_.empty()) ended_.Ref(env_);
  pending_.emplace(pending, std::move(owned));
  {
    const std::lock_guard lock(mutex_);
    ++in_flight_;
  }
  const auto done = [this, pending](std::exception_ptr error) {
    pending->error = error;
    // The lock is held over the call: once the count is 0, close() may go on and this object may be gone.
    const std::lock_guard lock(mutex_);
    ended_.NonBlockingCall(pending);
    --in_flight_;
    idle_.notify_all();
  };
  try {
    submit(done);
  } catch (...) {
    done(std::current_exception());
  }
  return promise;
}

void Environment::on_ended(Napi::Env env, Napi::Function, Environment* self, Pending* pending) {
  if (static_cast<napi_env>(env) == nullptr) return;  // the environment is closing
  try {
    self->settle(env, pending);
  } catch (const Napi::Error&) {
    // The thread is being terminated: JavaScript runs no more, and nobody waits for the promise.
  }
}

void Environment::settle(Napi::Env env, Pending* pending) {
  const auto found = pending_.find(pending);
  if (found == pending_.end()) return;
  const std::unique_ptr<Pending> owned = std::move(found->second);
  pending_.erase(found);
  if (pending_.empty()) ended_.Unref(env);
  if (owned->error)
    owned->deferred.Reject(to_js(owned->error).Value());
  else
    owned->deferred.Resolve(env.Undefined());
}

// The environment goes, and with it the memory that calls in flight use: tell them to stop, and wait.
void Environment::close() {
  closing_->store(true, std::memory_order_relaxed);
  {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return in_flight_ == 0; });
  }
  pending_.clear();
  device_class.Reset();
  kv_cache_class.Reset();
  plan_class.Reset();
  memory_class.Reset();
  stream_class.Reset();
  error_class_.Reset();
}

}  // namespace lean::binding
