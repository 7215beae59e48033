package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/cri/streaming"
)

// checkStreams refuses what no client can have.
func checkStreams(s streaming.Streams) error {
	if s.TTY && s.Stderr {
		return invalid("stderr", "a terminal has no stderr of its own: tty and stderr cannot both be true")
	}
	if !s.Stdin && !s.Stdout && !s.Stderr {
		return invalid("stdout", "one of stdin, stdout, stderr must be true")
	}
	return nil
}

func (s *runtimeService) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	streams := streaming.Streams{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
	if err := checkStreams(streams); err != nil {
		return nil, err
	}
	id, process, err := s.b.Commands.ExecProcess(r.GetContainerId(), r.GetCmd(), r.GetTty())
	if err != nil {
		return nil, err
	}
	url, err := s.b.Streams.URL(ctx, streaming.Operation{Exec: &streaming.Exec{Container: id, Process: process, Streams: streams}})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

func (s *runtimeService) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	streams := streaming.Streams{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
	if err := checkStreams(streams); err != nil {
		return nil, err
	}
	c, err := s.b.Commands.Attachable(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if c.Config.TTY != r.GetTty() {
		return nil, invalid("tty", "container %s was created with tty %v", c.ID, c.Config.TTY)
	}
	url, err := s.b.Streams.URL(ctx, streaming.Operation{Attach: &streaming.Attach{Container: c.ID, Streams: streams}})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

func (s *runtimeService) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	for _, p := range r.GetPort() {
		if p < 1 || p > 65535 {
			return nil, invalid("port", "%d is not between 1 and 65535", p)
		}
	}
	netns, err := s.b.Commands.PodNetwork(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	op := streaming.Operation{PortForward: &streaming.PortForward{Pod: r.GetPodSandboxId(), NetNS: netns, Ports: r.GetPort()}}
	url, err := s.b.Streams.URL(ctx, op)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}
