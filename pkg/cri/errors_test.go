package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"criserver/pkg/checkpoints"
	"criserver/pkg/cni"
	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/opfile"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/record"
	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/cgroup/limit"
	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/qosclass"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

// The kubelet knows these by how their text begins.
func TestTypedErrors(t *testing.T) {
	for err, want := range map[error]error{
		registry.ErrUnavailable:      crierrors.ErrRegistryUnavailable,
		imagesvc.ErrUntrusted:        crierrors.ErrSignatureValidationFailed,
		sandbox.ErrImageVolume:       crierrors.ErrImageVolumeMountFailed,
		sandbox.ErrRecursiveReadOnly: crierrors.ErrRROUnsupported,
	} {
		got := status.Convert(toStatus(fmt.Errorf("pull a/b: %w: why", err)))
		if got.Code() != codes.Unknown || !strings.HasPrefix(got.Message(), want.Error()+": pull a/b: ") {
			t.Errorf("%v: got %v %q", err, got.Code(), got.Message())
		}
	}
}

func TestToStatus(t *testing.T) {
	for _, row := range []struct {
		err  error
		code codes.Code
	}{
		{nil, codes.OK},
		{sandbox.ErrNotFound, codes.NotFound},
		{sandbox.ErrState, codes.FailedPrecondition},
		{sandbox.ErrUnavailable, codes.Unavailable},
		{sandbox.ErrNoMonitor, codes.Unavailable},
		{sandbox.ErrLogFile, codes.FailedPrecondition},
		{sandbox.ErrExists, codes.AlreadyExists},
		{checkpoint.ErrInvalid, codes.InvalidArgument},
		{checkpoints.ErrForbidden, codes.PermissionDenied},
		{limit.ErrInUse, codes.FailedPrecondition},
		{limit.ErrRefused, codes.InvalidArgument},
		{sandbox.ErrAmbiguous, codes.InvalidArgument},
		{sandbox.ErrTimeout, codes.DeadlineExceeded},
		{sandbox.ErrUnavailable, codes.Unavailable},
		{want.ErrInvalid, codes.InvalidArgument},
		{cni.ErrInvalid, codes.InvalidArgument},
		{cni.ErrPortTaken, codes.FailedPrecondition},
		{cni.ErrGatewayTaken, codes.FailedPrecondition},
		{cni.ErrUnlimitable, codes.FailedPrecondition},
		{cni.ErrNotReady, codes.Unavailable},
		{cni.ErrExhausted, codes.ResourceExhausted},
		{qosclass.ErrClass, codes.InvalidArgument},
		{spec.Invalidf("field", "bad"), codes.InvalidArgument},
		{imagesvc.ErrNotFound, codes.NotFound},
		{imagesvc.ErrInvalid, codes.InvalidArgument},
		{registry.ErrNotFound, codes.NotFound},
		{registry.ErrUnauthorized, codes.Unauthenticated},
		{registry.ErrUnavailable, codes.Unknown},
		{imagesvc.ErrUntrusted, codes.Unknown},
		{errors.Join(registry.ErrInvalid, opfile.ErrHangs), codes.Unavailable},
		{imagesvc.ErrNoSpace, codes.ResourceExhausted},
		{record.ErrFull, codes.ResourceExhausted},
		{&os.PathError{Op: "mkdir", Path: "/a", Err: unix.ENOSPC}, codes.ResourceExhausted},
		{registry.ErrDigest, codes.DataLoss},
		{registry.ErrTruncated, codes.DataLoss},
		{registry.ErrStalled, codes.Unavailable},
		{sandbox.ErrImageVolume, codes.Unknown},
		{sandbox.ErrRecursiveReadOnly, codes.Unknown},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{unsupported("field", 1), codes.InvalidArgument},
		{invalid("field", "bad"), codes.InvalidArgument},
		{errors.New("disk on fire"), codes.Unknown},
		{status.Error(codes.ResourceExhausted, "as it is"), codes.ResourceExhausted},
	} {
		wrapped := row.err
		if _, ok := status.FromError(row.err); !ok {
			wrapped = fmt.Errorf("run pod a/b: %w", row.err)
		}
		got := toStatus(wrapped)
		if status.Code(got) != row.code {
			t.Errorf("%v: code %s, want %s", row.err, status.Code(got), row.code)
		}
		if row.err != nil && !strings.Contains(got.Error(), row.err.Error()) {
			t.Errorf("%v: the message is lost in %q", row.err, got)
		}
	}
}

func TestPanicEndsOneCallOnly(t *testing.T) {
	info := &grpc.UnaryServerInfo{FullMethod: "/runtime.v1.RuntimeService/Version"}
	_, err := recoverUnary(t.Context(), nil, info, func(context.Context, any) (any, error) { panic("ouch") })
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "ouch") || !strings.Contains(err.Error(), "Version") {
		t.Errorf("err = %v", err)
	}
	resp, err := recoverUnary(t.Context(), nil, info, func(context.Context, any) (any, error) { return 1, nil })
	if resp != 1 || err != nil {
		t.Errorf("a call that does not panic: %v, %v", resp, err)
	}
}
