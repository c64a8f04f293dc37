"""Off-screen images of a MuJoCo scene: fast ones for policies, good ones for people.

A fast image is drawn without shadows, reflections or multisampling, which is where robosuite's default spends its
time. Rendering is in software with OSMesa where its library is there, so that the same
scene gives the same pixels on every machine; ``MUJOCO_GL=egl`` asks for EGL instead.
"""

import ctypes
import os

import numpy as np

from deas_vla.errors import UserError

LIBRARIES = {"osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"), "egl": ("libEGL.so.1", "libEGL.so")}
INSTALL_COMMAND = "sudo apt-get install -y libosmesa6 libegl1 libgl1-mesa-dri"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def choose_gl() -> str:
    """The OpenGL platform to render with, ``osmesa`` or ``egl``, which MuJoCo reads from ``MUJOCO_GL``.

    Raises UserError if no library is installed, with the line that installs one.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    if wanted and wanted not in LIBRARIES:
        raise UserError(f"MUJOCO_GL={wanted} cannot render off screen; set it to osmesa or egl, or unset it")
    for platform in [wanted] if wanted else LIBRARIES:
        if any(_loads(library) for library in LIBRARIES[platform]):
            os.environ |= {"MUJOCO_GL": platform, "PYOPENGL_PLATFORM": platform}
            return platform
    missing = wanted or "OSMesa and EGL"
    raise UserError(f"no OpenGL library to render with ({missing} not found): {INSTALL_COMMAND}")


def look_back(offset: tuple[float, float, float]) -> np.ndarray:
    """(3, 3) rotation of an upright camera that looks back from `offset`: its x, y and z in the world as columns."""
    back = np.array(offset) / np.linalg.norm(offset)
    right = np.cross((0.0, 0.0, 1.0), back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back], axis=1)


class SceneRenderer:
    """Renders one model: its geometry of some groups, `full`: with shadows and smooth edges, and sites of group 0."""

    def __init__(self, model, height: int, width: int, groups: tuple[int, ...], *, full: bool, sites: bool):
        platform = choose_gl()
        import mujoco

        self.model, self.size = model, (height, width)
        quality, frame = model.vis.quality, model.vis.global_
        kept = quality.offsamples, quality.shadowsize, frame.offwidth, frame.offheight
        # These are read when the context is made, never later.
        quality.offsamples, quality.shadowsize = (4, 2048) if full else (0, 0)
        frame.offwidth, frame.offheight = width, height
        try:
            if platform == "osmesa":
                from mujoco.osmesa import GLContext
            else:
                from mujoco.egl import GLContext
            self._gl = GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            problem = f"the {platform} library is there but does not render ({error})"
            raise UserError(f"{problem}: {INSTALL_COMMAND}") from error
        finally:
            quality.offsamples, quality.shadowsize, frame.offwidth, frame.offheight = kept
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[list(groups)] = 1
        self._option.sitegroup[:] = 0
        self._option.sitegroup[0] = int(sites)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = int(full)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), dtype=np.uint8)

    def render(self, data, camera: str) -> np.ndarray:
        """(height, width, 3) uint8, upright RGB, seen from a named camera; kinematics must be up to date."""
        import mujoco

        self._gl.make_current()
        self._camera.fixedcamid = self.model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self.model, data, self._option, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        return self._pixels[::-1].copy()

    def close(self) -> None:
        """Frees the context; the renderer cannot be used after it."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None
