package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/want"
)

// podHandler finds the handler that a new pod wants.
func (s *Service) podHandler(ctx context.Context, c want.Pod) (handler.Usable, error) {
	h, err := s.config.Handlers.Find(ctx, c.Handler)
	switch {
	case errors.Is(err, handler.ErrUnknown):
		return h, fmt.Errorf("runtime_handler: %w: %w", want.ErrInvalid, err)
	case errors.Is(err, handler.ErrUnusable):
		return h, fmt.Errorf("run pod %s/%s: %w: %w", c.Namespace, c.Name, ErrUnavailable, err)
	}
	if err == nil {
		if err := h.CheckProcesses(c.Namespaces.PID != want.NamespaceContainer); err != nil {
			return h, fmt.Errorf("namespace_options.pid: %w: %w", want.ErrInvalid, err)
		}
	}
	if err == nil && c.Namespaces.Users != nil {
		if err := h.CheckUsers(c.Namespaces.Network == want.NamespaceNode); err != nil {
			return h, fmt.Errorf("namespace_options.userns_options: %w: %w", want.ErrInvalid, err)
		}
	}
	return h, err
}

// containerHandler finds the handler of a pod for a new container, as it is configured now.
func (s *Service) containerHandler(ctx context.Context, p PodStatus) (handler.Usable, error) {
	h, err := s.config.Handlers.Find(ctx, cmp.Or(p.Handler, handler.Builtin))
	switch {
	case errors.Is(err, handler.ErrUnknown):
		return h, fmt.Errorf("%w of pod %s: %w; configure it again, or remove the pod", err, p.ID, ErrState)
	case errors.Is(err, handler.ErrUnusable):
		return h, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return h, err
}
