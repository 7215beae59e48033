package cri

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"criserver/pkg/checkpoints"
	"criserver/pkg/cni"
	"criserver/pkg/cri/streaming"
	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/opfile"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/cgroup/limit"
	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/plugin"
	"criserver/pkg/sandbox/qosclass"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

// errUnsupported: a field of the CRI that this version does not honour, and therefore refuses.
var errUnsupported = errors.New("not supported")

// unsupported refuses a field.
func unsupported(field string, value any) error {
	return fmt.Errorf("%s: %v is %w by this version of criserver", field, value, errUnsupported)
}

// errInvalid: a request that can never succeed.
var errInvalid = errors.New("invalid")

func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %w: %s", field, errInvalid, fmt.Sprintf(format, args...))
}

// typedErrors are those that the kubelet knows by the beginning of their text and the code Unknown (k8s.io/cri-api/pkg/errors).
var typedErrors = []struct{ err, typed error }{
	{imagesvc.ErrUntrusted, crierrors.ErrSignatureValidationFailed},
	{registry.ErrUnavailable, crierrors.ErrRegistryUnavailable},
	{sandbox.ErrImageVolume, crierrors.ErrImageVolumeMountFailed},
	{sandbox.ErrRecursiveReadOnly, crierrors.ErrRROUnsupported},
}

// codeTable is the one place where errors get their gRPC codes; the first that fits wins. The kubelet acts on NotFound and
// DeadlineExceeded (k8s.io/cri-client), and people read the rest.
var codeTable = []struct {
	err  error
	code codes.Code
}{
	{sandbox.ErrTimeout, codes.DeadlineExceeded},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{plugin.ErrRefused, codes.FailedPrecondition}, // whatever it is that plugins want and cannot have
	{want.ErrInvalid, codes.InvalidArgument},
	{sandbox.ErrAmbiguous, codes.InvalidArgument},
	{spec.ErrInvalid, codes.InvalidArgument}, // also of pkg/sandbox/user
	{qosclass.ErrClass, codes.InvalidArgument},
	{errInvalid, codes.InvalidArgument},
	{errUnsupported, codes.InvalidArgument},
	{checkpoint.ErrInvalid, codes.InvalidArgument},
	{checkpoints.ErrForbidden, codes.PermissionDenied},
	{sandbox.ErrExists, codes.AlreadyExists},
	{limit.ErrInUse, codes.FailedPrecondition},
	{limit.ErrRefused, codes.InvalidArgument},
	{sandbox.ErrState, codes.FailedPrecondition},
	{sandbox.ErrUnavailable, codes.Unavailable},
	{sandbox.ErrNoMonitor, codes.Unavailable},
	{sandbox.ErrLogFile, codes.FailedPrecondition}, // what is there must go first
	{cni.ErrInvalid, codes.InvalidArgument},
	{cni.ErrPortTaken, codes.FailedPrecondition}, // another pod must go first
	{cni.ErrGatewayTaken, codes.FailedPrecondition},
	{cni.ErrUnlimitable, codes.FailedPrecondition},
	{cni.ErrNotReady, codes.Unavailable},
	{cni.ErrExhausted, codes.ResourceExhausted},
	{streaming.ErrUnavailable, codes.Unavailable},
	{streaming.ErrBusy, codes.ResourceExhausted},
	{sandbox.ErrNotFound, codes.NotFound},
	{imagesvc.ErrNotFound, codes.NotFound},
	{opfile.ErrHangs, codes.Unavailable}, // may be why a setting is invalid
	{imagesvc.ErrInvalid, codes.InvalidArgument},
	{registry.ErrInvalid, codes.InvalidArgument},
	{registry.ErrNotFound, codes.NotFound},
	{registry.ErrUnauthorized, codes.Unauthenticated},
	{imagesvc.ErrNoSpace, codes.ResourceExhausted},
	{unix.ENOSPC, codes.ResourceExhausted}, // of a record (record.ErrFull), or a file of a pod
	{unix.EDQUOT, codes.ResourceExhausted},
	{registry.ErrDigest, codes.DataLoss},
	{registry.ErrTruncated, codes.DataLoss},
	{registry.ErrStalled, codes.Unavailable},
}

// toStatus gives an error its gRPC code; an error that has one already keeps it.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, row := range typedErrors {
		if errors.Is(err, row.err) {
			return status.Error(codes.Unknown, row.typed.Error()+": "+err.Error())
		}
	}
	for _, row := range codeTable {
		if errors.Is(err, row.err) {
			return status.Error(row.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}
