package cri

import (
	"context"
	"path"
	"runtime/debug"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// logged writes one line a call: what was called, on what, for how long, with what end. Requests themselves are never
// logged: they hold credentials and environment variables.
func logged(method string, req any, start time.Time, err error) {
	fields := logrus.Fields{"rpc": path.Base(method), "took": time.Since(start).Round(10 * time.Microsecond)}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok && r.GetPodSandboxId() != "" {
		fields["pod"] = r.GetPodSandboxId()
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok && r.GetContainerId() != "" {
		fields["container"] = r.GetContainerId()
	}
	entry := logrus.WithFields(fields)
	switch code := status.Code(err); {
	case err == nil:
		entry.Debug("call")
	case code == codes.NotFound || code == codes.Unimplemented || code == codes.Canceled:
		entry.WithError(err).Debug("call failed")
	default:
		entry.WithError(err).Error("call failed")
	}
}

func logUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	start := time.Now()
	resp, err := next(ctx, req)
	logged(info.FullMethod, req, start, err)
	return resp, err
}

func logStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	start := time.Now()
	err := next(srv, ss)
	logged(info.FullMethod, nil, start, err)
	return err
}

func mapUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	return resp, toStatus(err)
}

func mapStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return toStatus(next(srv, ss))
}

func recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() { err = recovered(recover(), info.FullMethod, err) }()
	return next(ctx, req)
}

func recoverStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() { err = recovered(recover(), info.FullMethod, err) }()
	return next(srv, ss)
}

// recovered turns a panic into an error of its call: the other calls of the node go on.
func recovered(p any, method string, err error) error {
	if p == nil {
		return err
	}
	logrus.WithFields(logrus.Fields{"rpc": path.Base(method), "panic": p}).Errorf("a call panicked\n%s", debug.Stack())
	return status.Errorf(codes.Internal, "%s panicked: %v; criserver's log has the stack", path.Base(method), p)
}
