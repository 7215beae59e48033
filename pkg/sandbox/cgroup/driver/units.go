package driver

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/singleflight"

	"criserver/pkg/sandbox/spec"
)

// jobLimit bounds what systemd is asked to do.
const jobLimit = 20 * time.Second

// connection to systemd, made when it is needed and kept: it is asked once for each pod, not for each step.
var (
	connection atomic.Pointer[dbus.Conn]
	dials      singleflight.Group
)

// connect may leave behind a dial that hangs, which those who come later wait for as well, each with its own context.
func connect(ctx context.Context) (*dbus.Conn, error) {
	if c := connection.Load(); c != nil && c.Connected() {
		return c, nil
	}
	dial := dials.DoChan("", func() (any, error) {
		// Its context is the life of the connection.
		c, err := dbus.NewWithContext(context.WithoutCancel(ctx))
		if err == nil {
			connection.Store(c)
		}
		return c, err
	})
	select {
	case d := <-dial:
		if d.Err != nil {
			return nil, fmt.Errorf("connect to systemd: %w", d.Err)
		}
		return d.Val.(*dbus.Conn), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to systemd: %w", context.Cause(ctx))
	}
}

func limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, jobLimit, fmt.Errorf("systemd has not answered in %s: %w", jobLimit, context.DeadlineExceeded))
}

// job starts a job of systemd and waits for its end.
func job(ctx context.Context, what, unit string, start func(context.Context, *dbus.Conn, chan<- string) (int, error)) error {
	ctx, cancel := limited(ctx)
	defer cancel()
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	done := make(chan string, 1)
	if _, err := start(ctx, conn, done); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s %s: %w", what, unit, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("%s %s: the job of systemd ended as %q", what, unit, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s %s: %w", what, unit, context.Cause(ctx))
	}
}

func startSlice(ctx context.Context, pod string) error {
	unit := path.Base(pod)
	props := []dbus.Property{
		dbus.PropDescription("criserver pod"),
		{Name: "DefaultDependencies", Value: godbus.MakeVariant(false)},
		{Name: "MemoryAccounting", Value: godbus.MakeVariant(true)},
		{Name: "CPUAccounting", Value: godbus.MakeVariant(true)},
		{Name: "TasksAccounting", Value: godbus.MakeVariant(true)},
	}
	err := job(ctx, "start", unit, func(ctx context.Context, c *dbus.Conn, done chan<- string) (int, error) {
		return c.StartTransientUnitContext(ctx, unit, "replace", props, done)
	})
	if isError(err, "org.freedesktop.systemd1.UnitExists") {
		return nil
	}
	return err
}

func stopUnit(ctx context.Context, unit string) error {
	err := job(ctx, "stop", unit, func(ctx context.Context, c *dbus.Conn, done chan<- string) (int, error) {
		return c.StopUnitContext(ctx, unit, "replace", done)
	})
	if isError(err, "org.freedesktop.systemd1.NoSuchUnit") {
		return nil
	}
	return err
}

func isError(err error, name string) bool {
	var e godbus.Error
	return errors.As(err, &e) && e.Name == name
}

// Sync tells systemd, if the cgroup of the container is its, of limits that are in the files already.
func Sync(ctx context.Context, container string, r *specs.LinuxResources) error {
	if !strings.HasSuffix(container, scope) || r == nil {
		return nil
	}
	ctx, cancel := limited(ctx)
	defer cancel()
	told := make(chan error, 1)
	go func() { told <- tell(container, resources(r)) }() // the library asks without a context
	var err error
	select {
	case err = <-told:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("tell systemd of new limits: %w", err)
	}
	return nil
}

func tell(container string, limits *cgroups.Resources) error {
	m, err := manager.New(&cgroups.Cgroup{
		Systemd: true, Parent: path.Base(path.Dir(container)), ScopePrefix: spec.ScopePrefix,
		Name: strings.TrimSuffix(strings.TrimPrefix(path.Base(container), spec.ScopePrefix+"-"), scope), Resources: limits,
	})
	if err != nil {
		return err
	}
	return m.Set(limits)
}

// resources are the limits that the CRI has, as the library takes them.
func resources(r *specs.LinuxResources) *cgroups.Resources {
	out := &cgroups.Resources{SkipDevices: true, Unified: r.Unified}
	if m := r.Memory; m != nil {
		out.Memory, out.MemorySwap = value(m.Limit), value(m.Swap)
	}
	if c := r.CPU; c != nil {
		out.CpuShares, out.CpuPeriod, out.CpuQuota = value(c.Shares), value(c.Period), value(c.Quota)
		out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(out.CpuShares)
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	}
	for _, h := range r.HugepageLimits {
		out.HugetlbLimit = append(out.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	return out
}

func value[T any](p *T) T {
	var none T
	if p == nil {
		return none
	}
	return *p
}
