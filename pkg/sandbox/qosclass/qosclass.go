// Package qosclass gives containers the RDT class (cache and memory bandwidth) and the block I/O class that the annotations of
// pods and containers name, as containerd and CRI-O do, or else those of their runtime handler. The classes are the operator's, in the
// files that goresctrl reads, which are the node's, as the kernel has them once.
package qosclass

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"github.com/intel/goresctrl/pkg/blockio"
	"github.com/intel/goresctrl/pkg/rdt"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// ErrClass says that a container wants a class that it cannot have.
var ErrClass = errors.New("class")

// resctrl is where the kernel's control of caches is mounted (Documentation/arch/x86/resctrl.rst).
const resctrl = "/sys/fs/resctrl"

// Configure reads the files of the classes, and has the kernel make those of RDT; "" is none. It holds for the process.
func Configure(rdtFile, blockioFile string) error {
	if rdtFile != "" {
		if _, err := os.Stat(resctrl + "/info"); err != nil {
			return fmt.Errorf("RDT classes of %s: the kernel's resctrl is not mounted on %s, or this CPU or kernel has none: %w",
				rdtFile, resctrl, err)
		}
		if err := rdt.Initialize(""); err != nil {
			return fmt.Errorf("RDT classes of %s: %w", rdtFile, err)
		}
		if err := rdt.SetConfigFromFile(rdtFile, true); err != nil {
			return fmt.Errorf("RDT classes: %w", err)
		}
	}
	if blockioFile != "" {
		if err := blockio.SetConfigFromFile(blockioFile, false); err != nil {
			return fmt.Errorf("block I/O classes: %w", err)
		}
	}
	return nil
}

// Classes are those of containers that name none; "" is none.
type Classes struct{ RDT, BlockIO string }

// Check refuses classes that are not there: ErrClass.
func (c Classes) Check() error {
	if c.RDT != "" {
		if _, ok := rdt.GetClass(c.RDT); !ok {
			return fmt.Errorf("RDT %w: %q is not in the file runtime.rdt_config, or there is none", ErrClass, c.RDT)
		}
	}
	if c.BlockIO != "" {
		if _, err := BlockIO(c.BlockIO); err != nil {
			return fmt.Errorf("%w (runtime.blockio_config)", err)
		}
	}
	return nil
}

// Apply puts the classes of a container into its specification. ErrClass: a class is not there, or not for such a container.
func (c Classes) Apply(s *specs.Spec, container string, containerAnnotations, podAnnotations map[string]string) error {
	class, err := rdt.ContainerClassFromAnnotations(container, containerAnnotations, podAnnotations)
	if err != nil {
		return fmt.Errorf("annotations: RDT %w: %w", ErrClass, err)
	}
	if class = cmp.Or(class, c.RDT); class != "" {
		s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: class}
	}
	class, err = blockio.ContainerClassFromAnnotations(container, containerAnnotations, podAnnotations)
	if err != nil {
		return fmt.Errorf("annotations: block I/O %w: %w", ErrClass, err)
	}
	if class = cmp.Or(class, c.BlockIO); class == "" {
		return nil
	}
	limits, err := BlockIO(class)
	if err != nil {
		return err
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	s.Linux.Resources.BlockIO = limits
	return nil
}

// BlockIO are the limits of a block I/O class. ErrClass: there is no such class.
func BlockIO(class string) (*specs.LinuxBlockIO, error) {
	limits, err := blockio.OciLinuxBlockIO(class)
	if err != nil {
		return nil, fmt.Errorf("block I/O %w: %w", ErrClass, err)
	}
	return limits, nil
}
